{{/* Labels of every object. Call with (dict "root" $ "component" "operator"). */}}
{{- define "qvl.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: qvl
{{ include "qvl.selector" . }}
{{- end }}

{{/* Labels that select the pods of a component; they never change. */}}
{{- define "qvl.selector" -}}
app.kubernetes.io/name: qvl
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Reference of an image. Call with (dict "root" $ "image" .Values.image). */}}
{{- define "qvl.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What every pod has. Call with (dict "root" $ "values" .Values.operator). */}}
{{- define "qvl.pod" -}}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "qvl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qvl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Who makes the certificates of operator and collector: chart, cert-manager, user; empty without TLS. */}}
{{- define "qvl.tlsMaker" -}}
{{- if not .Values.tls.enabled -}}
{{- else if .Values.tls.existingSecret -}}
user
{{- else if .Values.tls.certManager.enabled -}}
cert-manager
{{- else -}}
chart
{{- end -}}
{{- end }}

{{- define "qvl.tlsSecret" -}}
{{- get (dict "chart" "qvl-tls" "cert-manager" "qvl-certificate" "user" .Values.tls.existingSecret) (include "qvl.tlsMaker" .) -}}
{{- end }}

{{/* Arguments for those who show a certificate. */}}
{{- define "qvl.tlsArgs" -}}
- --tls-cert=/etc/qvl/tls/tls.crt
- --tls-key=/etc/qvl/tls/tls.key
{{- if .Values.tls.acceptPlain }}
- --tls-accept-plain
{{- end }}
{{- end }}

{{/* The volume with these keys of the Secret, for the group of the pod. Call with (dict "root" $ "keys" (list ...)). */}}
{{- define "qvl.tlsVolume" -}}
name: tls
secret:
  secretName: {{ include "qvl.tlsSecret" .root }}
  defaultMode: 288 # 0440
  items:
    {{- range .keys }}
    - {key: {{ . }}, path: {{ . }}}
    {{- end }}
{{- end }}

{{/* Peers of a NetworkPolicy: the API server, for connections from it or to it. */}}
{{- define "qvl.apiServer" -}}
{{- range .Values.networkPolicy.apiServer.cidrs }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* Egress rules that every component needs: API server and DNS. */}}
{{- define "qvl.egress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- if .Values.networkPolicy.apiServer.cidrs }}
  to: {{- include "qvl.apiServer" . | nindent 4 }}
  {{- end }}
{{ include "qvl.dns" . }}
{{- end }}

{{- define "qvl.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
  {{- with .Values.networkPolicy.dns.namespaceLabels }}
  to:
    - namespaceSelector: {matchLabels: {{ toJson . }}}
  {{- end }}
{{- end }}

{{/* Ingress rule for metrics. */}}
{{- define "qvl.metricsIngress" -}}
- ports: [{port: metrics, protocol: TCP}]
  from:
    - namespaceSelector: {matchLabels: {{ toJson .Values.networkPolicy.monitoring.namespaceLabels }}}
{{- end }}

{{/* Ingress peer: pods of jobs, in any namespace. */}}
{{- define "qvl.jobPods" -}}
- namespaceSelector: {}
  podSelector: {matchExpressions: [{key: qvl.dev/job, operator: Exists}]}
{{- end }}

{{/* Annotations of a test hook with its weight. What failed stays, so that it can be looked at. */}}
{{- define "qvl.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Pod of a test. Call with (dict "root" $ "args" (list ...)). */}}
{{- define "qvl.testPod" -}}
restartPolicy: Never
serviceAccountName: qvl-test
automountServiceAccountToken: true
securityContext: {{- include "qvl.podSecurity" . | nindent 2 }}
{{ include "qvl.pod" (dict "root" .root "values" dict) }}
containers:
  - name: qvl
    image: {{ include "qvl.image" (dict "root" .root "image" .root.Values.image) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{- toYaml .args | nindent 6 }}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 256Mi}
    securityContext: {{- include "qvl.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 16Mi}
{{- end }}
