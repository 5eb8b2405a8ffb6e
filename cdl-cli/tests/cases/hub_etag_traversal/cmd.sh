#!/bin/bash
# A hub chosen by HF_ENDPOINT (a mirror or proxy) sends paths in the headers that name files of the cache.
CDL=${CDL:-cdl}; Q=${Q:?the path of configs/quickstart.toml}; here=$(cd "$(dirname "$0")" && pwd)
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
mkdir -p "$T/home/autostart" "$T/home/docker"; echo '{"auths":{"mine":1}}' > "$T/home/docker/config.json"
printf '{"credsStore":"evil"}' > "$T/body"
export HF_HOME="$T/hf" HF_ENDPOINT=http://127.0.0.1:8811
ask() {
    python3 "$here/../hub.py" headers 8811 "$@" 2> /dev/null & server=$!
    sleep 0.7
    "$CDL" check "$Q" --steps 0 --set student.weights=hf:own/mod 2>&1 | grep header
    kill $server; wait $server 2> /dev/null
    find "$T/hf" -type l 2> /dev/null | sed 's/^/link: /'
    rm -rf "$T/hf"
}
ask "$T/home/autostart/evil.desktop" "$(printf 'a%.0s' {1..40})" "$T/body" model.safetensors
[ -z "$(ls -A "$T/home/autostart")" ] && echo "autostart is empty"
ask deadbeef "$T/home/docker" "$T/body" model.safetensors,config.json
cat "$T/home/docker/config.json"
ask /etc/hostname "$(printf 'b%.0s' {1..40})" "$T/body" model.safetensors
