#!/bin/bash
# Makes a coordinator of a fresh machine and the volume of its home. Safe to repeat.
# It stands in user data, so everything on the machine can read it.
set -euo pipefail

configuration=/etc/muster
mount_point=/var/lib/muster
console=${CONSOLE:-/dev/console}

# shellcheck source=/dev/null
. "$configuration/bootstrap.env"
: "${VOLUME:?}" "${ARCHITECTURE:?}" "${SSM_AGENT?}"

fail() {
    echo "muster: $*" >&2
    exit 1
}

# fetch URL FILE: downloads, and waits for a network.
fetch() {
    curl --fail --silent --show-error --location --proto '=https' --tlsv1.2 --connect-timeout 10 \
        --retry 100 --retry-all-errors --retry-delay 3 --retry-max-time 1800 --output "$2" "$1"
}

# find_volume: prints the device of the volume. It is attached only after the instance has started.
find_volume() {
    local device waited
    for waited in $(seq 600); do
        for device in "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${VOLUME/-/}" /dev/xvdf /dev/sdf; do
            if [ -b "$device" ]; then
                readlink -f "$device"
                return
            fi
        done
        [ "$waited" -lt 600 ] && sleep 1
    done
    fail "the volume $VOLUME is not attached"
}

# format_if_empty DEVICE: makes a file system only where surely nothing is: 2 is what blkid says then.
format_if_empty() {
    local code=0
    blkid --probe "$1" >/dev/null || code=$?
    case $code in
    0) ;;
    2) mkfs.ext4 -q -L muster "$1" ;;
    *) fail "cannot tell what is on $1 (blkid: $code); it is left as it is" ;;
    esac
}

new=
trap 'rm -f "$new"' EXIT

install_programs() {
    local name sha256 url
    while read -r name sha256 url; do
        new=$(mktemp "/usr/local/bin/$name.XXXXXX")
        fetch "$url" "$new"
        echo "$sha256  $new" | sha256sum --check --quiet || fail "$url is not what was expected"
        chmod 0755 "$new"
        mv "$new" "/usr/local/bin/$name"
    done <"$configuration/programs"
    # The worker of this architecture under its own name, for pools beside the coordinator.
    if [ -x "/usr/local/bin/worker-agent-$ARCHITECTURE" ]; then
        ln -sf "worker-agent-$ARCHITECTURE" /usr/local/bin/worker-agent
    fi
}

install_ssm_agent() {
    local package
    package=$(mktemp --suffix .deb)
    fetch "$SSM_AGENT" "$package"
    dpkg --install "$package"
    rm -f "$package"
    systemctl enable --now amazon-ssm-agent.service
}

# First, so that there is a way in if what follows fails.
if [ -n "$SSM_AGENT" ]; then
    install_ssm_agent
fi

if ! id muster >/dev/null 2>&1; then
    useradd --system --user-group --home-dir "$mount_point" --shell /usr/sbin/nologin muster
fi

device=$(find_volume)
mkdir -p "$mount_point"
if ! mountpoint -q "$mount_point"; then
    format_if_empty "$device"
    grep -q " $mount_point " /etc/fstab ||
        echo "UUID=$(blkid -s UUID -o value "$device") $mount_point ext4 defaults,nofail,nodev,nosuid 0 2" >>/etc/fstab
    mount "$device" "$mount_point"
fi
# The volume may have grown.
resize2fs "$device" >/dev/null 2>&1 || true
# Another image may number users otherwise.
chown muster:muster "$mount_point"
install -d -o muster -g muster -m 0700 "$mount_point/home"
if [ "$(stat -c %U "$mount_point/home/config.toml" 2>/dev/null || echo muster)" != muster ]; then
    chown -R muster:muster "$mount_point/home"
fi
install -o muster -g muster -m 0600 "$configuration/config.toml" "$mount_point/home/config.toml"

install_programs
systemctl daemon-reload
systemctl enable --now muster-coordinator.service

# The authority is made at the first start. It is public, and on the console those can read it who may
# call ec2:GetConsoleOutput: the way for workers to know whom to trust.
for _ in $(seq 60); do
    [ -s "$mount_point/home/tls/ca.pem" ] && break
    sleep 1
done
id=
for _ in $(seq 60); do
    id=$(runuser -u muster -- coordinator --home "$mount_point/home" pool id 2>/dev/null) && break
    sleep 1
done
[ -n "$id" ] || fail "the coordinator does not say who it is: see journalctl -u muster-coordinator"
{
    echo "muster: the coordinator's id: $id"
    echo "muster: the coordinator's authority"
    cat "$mount_point/home/tls/ca.pem"
} >"$console"
