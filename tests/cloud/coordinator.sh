#!/bin/bash
# Lets the coordinator's bootstrap run on machines of the tests, one after another with the same volume,
# and prints what became of it.
#
#   coordinator.sh FOLDER BOOTSTRAP UNIT COORDINATOR
#
# In a mount namespace of its own. FOLDER takes the volume, which begins empty.
set -euo pipefail
folder=$1 bootstrap=$2 unit=$3 coordinator=$4

truncate --size 64M "$folder/volume"
device=$(losetup --find --show "$folder/volume")
trap 'umount /var/lib/muster 2>/dev/null || true; losetup --detach "$device"' EXIT
# Instances have such names from udev; a machine of the tests may have no udev.
mount -t tmpfs none /dev/shm
mkdir -p /dev/shm/disk/by-id
if [ -d /dev/disk ]; then
    mount --bind /dev/shm/disk /dev/disk
else
    ln -sT /dev/shm/disk /dev/disk
    trap 'umount /var/lib/muster 2>/dev/null || true; losetup --detach "$device"; rm -f /dev/disk' EXIT
fi
ln -s "$device" /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123

# What is not there, and what must not really happen.
mkdir "$folder/bin"
cat >"$folder/bin/curl" <<'SCRIPT'
#!/bin/bash
# The last two words are the file and the address.
cp "${@: -1}" "${@: -2:1}"
SCRIPT
cat >"$folder/bin/systemctl" <<'SCRIPT'
#!/bin/bash
[ "$1" = enable ] || exit 0
set -a
. /etc/muster/coordinator.env
install -d -o muster -g muster -m 0700 "$MUSTER_HOME/tls"
echo "a certificate" >"$MUSTER_HOME/tls/ca.pem"
SCRIPT
cat >"$folder/bin/runuser" <<'SCRIPT'
#!/bin/bash
[ "$*" = "-u muster -- coordinator --home /var/lib/muster/home pool id" ] && echo 3f9a1c20
SCRIPT
chmod 0755 "$folder/bin/"*
export PATH="$folder/bin:$PATH" CONSOLE=$folder/console
sum=$(sha256sum "$coordinator")

# machine NAME: a fresh one, with the same volume.
machine() {
    mkdir -p "$folder/$1"
    mount -t tmpfs none "$folder/$1"
    for place in /etc /usr/local /var/lib; do
        mkdir -p "$folder/$1$place" "$folder/$1/work$place"
        mount -t overlay overlay -o "lowerdir=$place,upperdir=$folder/$1$place,workdir=$folder/$1/work$place" "$place"
    done
    mkdir -p /etc/muster
    printf 'VOLUME=vol-0123\nARCHITECTURE=x86_64\nSSM_AGENT=\n' >/etc/muster/bootstrap.env
    printf 'MUSTER_HOME=/var/lib/muster/home\nLISTEN=0.0.0.0:7733\n' >/etc/muster/coordinator.env
    printf 'coordinator %s %s\nworker-agent-x86_64 %s %s\n' "${sum%% *}" "$coordinator" "${sum%% *}" "$coordinator" >/etc/muster/programs
    echo "# $1" >/etc/muster/config.toml
    cp "$unit" /etc/systemd/system/
}

leave() {
    umount /var/lib/muster
    umount /var/lib /usr/local /etc
}

machine first
"$bootstrap"
echo "file system: $(blkid -s TYPE -o value "$device")"
echo "home: $(stat -c '%U %a' /var/lib/muster/home), configuration: $(cat /var/lib/muster/home/config.toml)"
echo "program: $(readlink -f /usr/local/bin/worker-agent)"
echo "console: $(tr '\n' ' ' <"$folder/console")"
echo kept >/var/lib/muster/home/journal
uuid=$(blkid -s UUID -o value "$device")
leave

# Another image numbers users otherwise.
machine second
useradd --system --no-create-home somebody
"$bootstrap"
"$bootstrap"
[ "$uuid" = "$(blkid -s UUID -o value "$device")" ] && echo "the same file system"
echo "journal: $(cat /var/lib/muster/home/journal), configuration: $(cat /var/lib/muster/home/config.toml)"
echo "owner: $(stat -c %U /var/lib/muster/home/config.toml /var/lib/muster/home/tls | sort -u | tr '\n' ' ')"
echo "fstab: $(grep -c ' /var/lib/muster ' /etc/fstab)"
leave

# What is not the program that was meant is not installed, and leaves nothing.
machine wrong
sed -i "s/${sum%% *}/$(printf '%064d' 0)/" /etc/muster/programs
if "$bootstrap" >"$folder/wrong.err" 2>&1; then
    echo "a wrong program was installed"
else
    echo "a wrong sum: $(grep -o 'is not what was expected' "$folder/wrong.err"), files left: $(find /usr/local/bin -name 'coordinator.*' | wc -l)"
fi
leave

# What is not a file system is not overwritten.
printf 'LABELONE' | dd of="$device" bs=1 seek=512 conv=notrunc status=none
dd if=/dev/zero of="$device" bs=1024 seek=1 count=64 conv=notrunc status=none
mkswap -f "$device" >/dev/null 2>&1
machine third
if "$bootstrap" 2>"$folder/refused"; then
    echo "something else was overwritten"
else
    echo "something else is left as it is: $(blkid -s TYPE -o value "$device")"
fi
umount /var/lib /usr/local /etc
