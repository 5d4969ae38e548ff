#!/usr/bin/env bash
# The root of an image for warren-coordinator or warren-relay: the files of the package (target/packages), of the C library
# and of the certificates that it depends on, and nothing else; no shell, no package manager.
#
#   packaging/oci/root.sh warren-coordinator
#   podman build -t warren-coordinator -f packaging/oci/coordinator.Containerfile target/oci/warren-coordinator
#
# The libraries are those of the Debian that this runs on. A rebuild is how they get their security updates.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
package=${1:?warren-coordinator or warren-relay}
deb=$(readlink -f target/packages/"$package"_*_"$(dpkg --print-architecture)".deb)
out=$PWD/target/oci/$package
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
umask 022

rm -rf "$out"
mkdir -p "$out"/{fetched,root}
(cd "$out/fetched" && apt-get download -qq libc6 libgcc-s1 ca-certificates)

cd "$out/root"
# As every Debian of today has them.
mkdir -p usr/{bin,lib,lib64,sbin} etc/ssl/certs var/lib tmp
for folder in bin lib lib64 sbin; do ln -s "usr/$folder" "$folder"; done
for one in "$deb" "$out"/fetched/*.deb; do dpkg-deb --fsys-tarfile "$one" | tar -x --keep-directory-symlink --no-same-owner; done
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
echo 'root:x:0:0:root:/:/usr/sbin/nologin' >etc/passwd
echo 'warren:x:65532:65532:Warren:/:/usr/sbin/nologin' >>etc/passwd
printf 'root:x:0:\nwarren:x:65532:\n' >etc/group

# What only a whole system uses.
rm -rf usr/lib/{firewalld,systemd} usr/lib/*/{gconv,audit} usr/libexec usr/sbin/update-ca-certificates etc/{ca-certificates,ufw,ld.so.conf.d}
find usr/share -mindepth 1 -maxdepth 1 ! -name doc -exec rm -r {} +
find usr/share/doc -type f ! -name 'copyright*' ! -name 'third-party*' ! -name 'sbom*' -delete

pack() { tar --sort=name --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" "$@"; }
pack --owner=0 --group=0 -cf "$out/root.tar" .
# The state is the service's own.
mkdir -m 700 "$out/state"
pack --owner=65532 --group=65532 --transform "s|^state|./var/lib/$package|" -C "$out" -rf "$out/root.tar" state
rm -r "$out"/{fetched,root,state}
