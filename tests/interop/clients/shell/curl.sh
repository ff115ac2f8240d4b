#!/bin/bash
# `curl -N` in a loop: it prints what comes; blocks, the cursor and the wait are the script's.

quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

status=$(mktemp)
trap 'rm -f "$status"' EXIT
cursor='' wait=3
while true; do
  event='' id='' data=''
  while IFS= read -r line; do
    case $line in
      'event: '*) event=${line#event: } ;;
      'id: '*) id=${line#id: } ;;
      'data: '*) data=${line#data: } ;;
      'retry: '*) wait=$((${line#retry: } / 1000)) ;;
      '')
        # Only now is the event whole, and its cursor good.
        cursor=${id:-$cursor}
        if [[ $data ]]; then
          printf '{"event": %s, "id": %s, "data": %s}\n' "$(quoted "${event:-message}")" "$(quoted "$id")" "$(quoted "$data")"
        fi
        event='' id='' data=''
        ;;
    esac
  done < <(curl -sN ${cursor:+-H "Last-Event-ID: $cursor"} -w '%{stderr}%{http_code}' "$1" 2> "$status")
  if [[ $(< "$status") == 204 ]]; then
    echo '{"gave_up": "204"}'
    exit
  fi
  sleep "$wait"
done
