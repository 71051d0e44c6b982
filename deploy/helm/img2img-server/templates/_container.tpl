{{/* What the init container and the server share. */}}
{{- define "img2img.environment" -}}
- {name: HOME, value: /var/cache/img2img}
- {name: HF_HOME, value: /var/cache/img2img/huggingface}
- {name: TRITON_CACHE_DIR, value: /var/cache/img2img/triton}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /var/cache/img2img/inductor}
- {name: IMG2IMG_DATA_DIR, value: /var/cache/img2img/data}
- {name: IMG2IMG_COMPILE_CACHE, value: /var/cache/img2img/compiled}
- {name: IMG2IMG_MODEL, value: {{ .Values.model.name | quote }}}
{{- with .Values.model.revision }}
- {name: IMG2IMG_MODEL_REVISION, value: {{ . | quote }}}
{{- end }}
- {name: IMG2IMG_DTYPE, value: {{ .Values.model.dtype }}}
{{- if not (hasKey .Values.settings "IMG2IMG_LOG_FORMAT") }}
- {name: IMG2IMG_LOG_FORMAT, value: json}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ include "img2img.settingValue" $value | quote }}}
{{- end }}
{{- end }}

{{- define "img2img.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "img2img.mounts" -}}
- {name: cache, mountPath: /var/cache/img2img}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* All variables of a server. */}}
{{- define "img2img.serverEnvironment" -}}
{{- include "img2img.environment" . | nindent 0 }}
{{- if include "img2img.pulls" . }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
- {name: IMG2IMG_DEVICE, value: {{ ternary "cpu" "cuda" (eq (int .Values.gpu.count) 0) }}}
- {name: IMG2IMG_HOST, value: 0.0.0.0}
- {name: IMG2IMG_PORT, value: "8000"}
{{- if .Values.metrics.enabled }}
- {name: IMG2IMG_METRICS_PORT, value: {{ .Values.metrics.port | quote }}}
{{- end }}
- {name: IMG2IMG_REQUEST_TIMEOUT, value: {{ include "img2img.settingValue" .Values.requestTimeout | quote }}}
- {name: IMG2IMG_GRACE_PERIOD, value: {{ ceil .Values.requestTimeout | int64 | quote }}}
- {name: IMG2IMG_START_TIMEOUT, value: {{ .Values.probes.startupSeconds | int64 | quote }}}
{{- if .Values.auth.disabled }}
- {name: IMG2IMG_NO_AUTH, value: "true"}
{{- end }}
{{- with include "img2img.secretVariable" (list . "IMG2IMG_API_KEYS" .Values.auth "api-keys") | trim }}{{ . | nindent 0 }}{{ end }}
{{- with include "img2img.secretVariable" (list . "IMG2IMG_DATABASE_URL" .Values.database "database-url") | trim }}{{ . | nindent 0 }}{{ end }}
{{- with include "img2img.secretVariable" (list . "IMG2IMG_LIMITS_URL" .Values.redis "redis-url") | trim }}{{ . | nindent 0 }}{{ end }}
{{- with .Values.extraEnv }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{/* The init container that pulls the weights. */}}
{{- define "img2img.pull" -}}
- name: pull
  image: {{ include "img2img.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - models
    - pull
    - {{ .Values.model.name | quote }}
    # This container has no card by which `auto` could choose.
    - --dtype={{ if eq .Values.model.dtype "auto" }}{{ ternary "float32" "float16" (eq (int .Values.gpu.count) 0) }}{{ else }}{{ .Values.model.dtype }}{{ end }}
  env:
    {{- include "img2img.environment" . | nindent 4 }}
    - {name: IMG2IMG_DEVICE, value: cpu}
    {{- with .Values.model.tokenSecret }}{{ if .name }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}}
    {{- end }}{{ end }}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
    limits: {memory: 2Gi}
  securityContext: {{- include "img2img.containerSecurity" . | nindent 4 }}
  volumeMounts: {{- include "img2img.mounts" . | nindent 4 }}
{{- end }}

{{- define "img2img.resources" -}}
{{- $limits := deepCopy (default dict .Values.resources.limits) -}}
{{- if .Values.gpu.count }}
{{- $_ := set $limits .Values.gpu.resource (int .Values.gpu.count) }}
{{- end }}
{{- with .Values.resources.requests }}
requests: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $limits }}
limits: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "img2img.volumes" -}}
- name: cache
  {{- with include "img2img.claim" . }}
  persistentVolumeClaim: {claimName: {{ . | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.size | quote }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- end }}

{{- define "img2img.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
