{{- define "img2img.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "img2img.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "img2img.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "img2img.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "img2img.selector" -}}
app.kubernetes.io/name: {{ include "img2img.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The pods that answer requests. */}}
{{- define "img2img.serving" -}}
{{ include "img2img.selector" . }}
{{- if .Values.ray.enabled }}
app.kubernetes.io/component: worker
{{- end }}
{{- end }}

{{- define "img2img.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "img2img.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "img2img.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "img2img.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "img2img.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default (printf "v%s" .Chart.AppVersion) .Values.image.tag }}
{{- end -}}
{{- end }}

{{/* Whether an init container fetches the weights, which it does for a hub id: "yes" or nothing. */}}
{{- define "img2img.pulls" -}}
{{- if and .Values.model.pull (regexMatch "^[^/]+/[^/]+$" .Values.model.name) -}}yes{{- end -}}
{{- end }}

{{/* The claim of the cache's volume; nothing where it is an emptyDir. */}}
{{- define "img2img.claim" -}}
{{- if .Values.cache.existingClaim -}}
{{- .Values.cache.existingClaim -}}
{{- else if .Values.cache.persistent -}}
{{- printf "%s-cache" (include "img2img.fullname" .) -}}
{{- end -}}
{{- end }}

{{- define "img2img.mostReplicas" -}}
{{- if .Values.ray.enabled -}}{{ add1 (max (int .Values.ray.workers) (int .Values.ray.maxWorkers)) }}{{- else if .Values.autoscaling.enabled -}}{{ .Values.autoscaling.maxReplicas }}{{- else -}}{{ .Values.replicas }}{{- end -}}
{{- end }}

{{/* Whether the cluster of Ray grows, by an autoscaler in its head's pod: "yes" or nothing. */}}
{{- define "img2img.rayGrows" -}}
{{- if and .Values.ray.enabled (gt (int .Values.ray.maxWorkers) (int .Values.ray.workers)) -}}yes{{- end -}}
{{- end }}

{{/* A variable from a secret: of another's making, or of this chart's. Nothing where there is none.
     Called with (list . NAME VALUES "the chart's key"). */}}
{{- define "img2img.secretVariable" -}}
{{- $root := index . 0 -}}{{- $values := index . 2 -}}
{{- if $values.existingSecret.name }}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ $values.existingSecret.name | quote }}, key: {{ $values.existingSecret.key | quote }}}}
{{- else if or $values.url $values.apiKeys }}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ include "img2img.fullname" $root | quote }}, key: {{ index . 3 }}}}
{{- end -}}
{{- end }}

{{/* A setting's value as the environment spells it: whole numbers without an exponent. */}}
{{- define "img2img.settingValue" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end }}

{{/* What no schema can say: values that exclude each other. */}}
{{- define "img2img.validate" -}}
{{- $auth := .Values.auth -}}
{{- $keys := or $auth.apiKeys $auth.existingSecret.name .Values.database.url .Values.database.existingSecret.name -}}
{{- if not (or $keys $auth.disabled) -}}
{{- fail "nobody could use the server: set auth.apiKeys, auth.existingSecret.name or a database (keys made with `img2img keys`), or auth.disabled: true if something in front checks who calls" -}}
{{- end -}}
{{- $claim := include "img2img.claim" . -}}
{{- if and $claim (not .Values.cache.existingClaim) (gt (int (include "img2img.mostReplicas" .)) 1) (not (has "ReadWriteMany" .Values.cache.accessModes)) -}}
{{- fail "cache.accessModes: more than one pod shares the cache's volume, which needs ReadWriteMany; or set cache.persistent: false, and each pod has its own" -}}
{{- end -}}
{{- $name := include "img2img.fullname" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s is no name of a Service, which begins with a letter and has no dot: set fullnameOverride" $name) -}}
{{- end -}}
{{- if and .Values.metrics.enabled (eq (int .Values.metrics.port) 8000) -}}
{{- fail "metrics.port is 8000, where the server itself listens" -}}
{{- end -}}
{{- $surge := toString (dig "maxSurge" "25%" (default dict .Values.strategy.rollingUpdate)) -}}
{{- if and $claim (not .Values.cache.existingClaim) (not .Values.ray.enabled) (not (has "ReadWriteMany" .Values.cache.accessModes)) (eq .Values.strategy.type "RollingUpdate") (not (regexMatch "^0+%?$" $surge)) -}}
{{- fail (printf "strategy.rollingUpdate.maxSurge is %s: the pod that an update adds waits for the cache's volume, which the old one keeps; set strategy.rollingUpdate to maxSurge: 0 and maxUnavailable: 1, or cache.accessModes to [ReadWriteMany]" $surge) -}}
{{- end -}}
{{- $unavailable := toString (dig "maxUnavailable" "25%" (default dict .Values.strategy.rollingUpdate)) -}}
{{- if and (not .Values.ray.enabled) (eq .Values.strategy.type "RollingUpdate") (regexMatch "^0+%?$" $surge) (regexMatch "^0+%?$" $unavailable) -}}
{{- fail "strategy.rollingUpdate: with maxSurge and maxUnavailable both 0 an update could replace no pod; set maxUnavailable: 1" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is greater than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.metrics.enabled) -}}
{{- fail "autoscaling needs metrics.enabled: it goes by img2img:backlog_seconds" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.kind "hpa") (lt (int .Values.autoscaling.minReplicas) 1) -}}
{{- fail "autoscaling.minReplicas: 0 needs kind keda; an HPA keeps at least one pod" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.minReplicas) 1) (not .Values.autoscaling.keda.query) -}}
{{- fail "autoscaling.minReplicas: 0 needs autoscaling.keda.query: no pods have no backlog, by which none would ever start again; name a number that is there without them, such as the ingress's requests, or set 1" -}}
{{- end -}}
{{- if and .Values.ray.enabled .Values.autoscaling.enabled -}}
{{- fail "autoscaling is of a Deployment's pods: with ray.enabled set ray.maxWorkers" -}}
{{- end -}}
{{- if and .Values.ray.enabled .Values.ray.maxWorkers (lt (int .Values.ray.maxWorkers) (int .Values.ray.workers)) -}}
{{- fail "ray.maxWorkers is less than ray.workers" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- end }}
