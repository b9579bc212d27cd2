#!/bin/bash
# Makes a worker of a fresh machine: its user, the program, the service. Safe to repeat.
# It stands in user data, so everything on the machine can read it.
set -euo pipefail

configuration=/etc/muster
program=/usr/local/bin/worker-agent
# The one name in every coordinator's certificate, whatever address it is dialled at.
tls_name=coordinator.muster

# shellcheck source=/dev/null
. "$configuration/bootstrap.env"
: "${COORDINATOR:?}" "${ARCHITECTURE:?}" "${PROGRAM_URL?}" "${PROGRAM_SHA256?}"

# fetch FILE: downloads the program. A coordinator may be starting, and a network too: the instance is
# ended by the coordinator if it has not joined in time.
fetch() {
    local port=${COORDINATOR##*:}
    local options=(
        --fail --silent --show-error --output "$1" --proto '=https' --tlsv1.2 --connect-timeout 10
        --retry 100 --retry-all-errors --retry-delay 3 --retry-max-time 1800
    )
    if [ -n "$PROGRAM_URL" ]; then
        curl "${options[@]}" --location "$PROGRAM_URL"
    else
        curl "${options[@]}" --cacert "$configuration/ca.pem" --noproxy '*' \
            --connect-to "$tls_name:$port:$COORDINATOR" "https://$tls_name:$port/worker-agent/$ARCHITECTURE"
    fi
}

if ! id muster-worker >/dev/null 2>&1; then
    useradd --system --user-group --create-home --home-dir /var/lib/muster-worker --shell /usr/sbin/nologin muster-worker
fi

if [ -x /usr/local/lib/muster/setup ]; then
    /usr/local/lib/muster/setup
fi

new=$(mktemp "$program.XXXXXX")
trap 'rm -f "$new"' EXIT
fetch "$new"
if [ -n "$PROGRAM_SHA256" ]; then
    echo "$PROGRAM_SHA256  $new" | sha256sum --check --quiet
fi
chmod 0755 "$new"
mv "$new" "$program"

systemctl daemon-reload
systemctl enable --now muster-worker.service
