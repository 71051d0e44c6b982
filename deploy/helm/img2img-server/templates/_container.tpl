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
