#!/bin/sh
# What a shell script with curl can do in tattle's place: one PAM session event to EventBridge, for
# tests/tools/bench to measure. It has no spool and no retries, the login waits for it, and it believes
# its environment. Needs curl 7.75 or newer, for --aws-sigv4.
set -eu
PATH=/usr/bin:/bin
imds=http://169.254.169.254/latest

case $PAM_TYPE in
open_session) session=opened ;;
close_session) session=closed ;;
*) exit 64 ;;
esac

fetch() { curl --silent --fail --max-time 3 --noproxy '*' "$@"; }
get() { fetch --header "X-aws-ec2-metadata-token: $token" "$imds/$1"; }
value() { printf %s "$1" | tr -d '\n' | sed -n "s/.*\"$2\" *: *\"\([^\"]*\)\".*/\1/p"; }
quote() { printf %s "$1" | sed 's/[\\"]/\\&/g'; }

token=$(fetch --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token")
document=$(get dynamic/instance-identity/document)
role=$(get meta-data/iam/security-credentials/)
credentials=$(get "meta-data/iam/security-credentials/$role")

region=$(value "$document" region)
resource="arn:aws:ec2:$region:$(value "$document" accountId):instance/$(value "$document" instanceId)"
detail="{\"username\": \"$(quote "$PAM_USER")\", \"remote_host\": \"$(quote "${PAM_RHOST-}")\","
detail="$detail \"session\": \"$session\"}"
entry="{\"Source\": \"com.unbounce.tattle\", \"DetailType\": \"SSH connection event detected\","
entry="$entry \"Time\": $(date +%s), \"Resources\": [\"$resource\"], \"Detail\": \"$(quote "$detail")\"}"

# By a configuration on standard input, so that no secret is on the command line.
answer=$(fetch --config - ${CURL_TATTLE_CACERT:+--cacert "$CURL_TATTLE_CACERT"} \
    --aws-sigv4 "aws:amz:$region:events" --data "{\"Entries\": [$entry]}" \
    --header 'Content-Type: application/x-amz-json-1.1' \
    --header 'X-Amz-Target: AWSEvents.PutEvents' "https://events.$region.amazonaws.com/" <<EOF
user = "$(value "$credentials" AccessKeyId):$(value "$credentials" SecretAccessKey)"
header = "X-Amz-Security-Token: $(value "$credentials" Token)"
EOF
)
test "$(printf %s "$answer" | sed -n 's/.*"FailedEntryCount" *: *\([0-9]*\).*/\1/p')" = 0
