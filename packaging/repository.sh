#!/usr/bin/env bash
# Makes a signed repository for apt and for dnf of the packages in target/packages: target/repository, to be put as it is
# where a web server serves it.
#
#   WARREN_REPOSITORY_URL=https://packages.example WARREN_SIGNING_KEY=FINGERPRINT repository.sh
#
# The key is one of gpg's on this machine: RSA, as rpm verifies no other kind everywhere. Where none is named a key is made
# for this repository alone, below target: good for trying. The package warren-keyring brings the public half and the entries
# for apt and dnf, so whoever has installed it once gets every further version, and a new key before the old one ends.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
packages=$PWD/target/packages
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=$PWD/target/repository
url=${WARREN_REPOSITORY_URL:-file://$out}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC
umask 022

main() {
  ls "$packages"/*.deb "$packages"/*.rpm >/dev/null
  rm -rf "$out"
  mkdir -p "$out"/{deb/pool,rpm}
  choose_key
  gpg --armor --export "$key" >"$out/warren.asc"
  cp "$packages"/*.deb "$out/deb/pool/"
  cp "$packages"/*.rpm "$out/rpm/"
  make_keyring_deb
  make_keyring_rpm
  make_apt
  make_dnf
  echo "target/repository is signed with $key; publish this fingerprint where users find it by another way."
}

# ---- the key ----

choose_key() {
  key=${WARREN_SIGNING_KEY:-}
  if [ -z "$key" ]; then
    export GNUPGHOME=$PWD/target/signing-key
    mkdir -p -m 700 "$GNUPGHOME"
    trap 'gpgconf --kill gpg-agent' EXIT
    [ -n "$(secret_keys)" ] || gpg --batch --quiet --passphrase '' --quick-generate-key "Warren packages (for trying)" rsa3072 sign 5y
  fi
  # In full, whatever it was called by.
  key=$(secret_keys $key | head -n 1)
  [ -n "$key" ] || { echo "repository.sh: gpg has no secret key '${WARREN_SIGNING_KEY:-}'" >&2; exit 1; }
}

secret_keys() { gpg --batch --list-secret-keys --with-colons "$@" 2>/dev/null | awk -F: '$1 == "fpr" { print $10 }'; }

# ---- the package with the key ----

make_keyring_deb() {
  local root=$out/keyring
  install -D -m 644 "$out/warren.asc" "$root/usr/share/keyrings/warren.asc"
  mkdir -p "$root/etc/apt/sources.list.d" "$root/DEBIAN"
  sed "s|@URL@|$url|" packaging/repository/warren.sources >"$root/etc/apt/sources.list.d/warren.sources"
  echo /etc/apt/sources.list.d/warren.sources >"$root/DEBIAN/conffiles"
  sed "s|@VERSION@|${version//-/\~}|" packaging/repository/control >"$root/DEBIAN/control"
  (cd "$root" && find etc usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  dpkg-deb --root-owner-group --build "$root" "$out/deb/pool/" >/dev/null
  rm -r "$root"
}

make_keyring_rpm() {
  local root=$out/keyring
  install -D -m 644 "$out/warren.asc" "$root/etc/pki/rpm-gpg/RPM-GPG-KEY-warren"
  mkdir -p "$root/etc/yum.repos.d"
  sed "s|@URL@|$url|" packaging/repository/warren.repo >"$root/etc/yum.repos.d/warren.repo"
  rpmbuild --quiet -bb --define "_topdir $out/rpmbuild" --define "_rpmdir $out/rpm" --define "staged $root" \
    --define "version_of_tree ${version//-/\~}" --define "_rpmfilename %%{name}-%%{version}-%%{release}.%%{arch}.rpm" \
    --define "_buildhost warren" --define "use_source_date_epoch_as_buildtime 1" \
    --define "clamp_mtime_to_source_date_epoch 1" packaging/repository/warren-keyring.spec
  rm -r "$root" "$out/rpmbuild"
}

# ---- apt ----

make_apt() {
  local architecture
  cd "$out/deb"
  for architecture in $(for deb in pool/*.deb; do dpkg-deb -f "$deb" Architecture; done | sort -u | grep -v '^all$'); do
    mkdir -p "dists/stable/main/binary-$architecture"
    apt-ftparchive --arch "$architecture" packages pool >"dists/stable/main/binary-$architecture/Packages"
    gzip -9nk "dists/stable/main/binary-$architecture/Packages"
  done
  apt-ftparchive -o APT::FTPArchive::Release::Origin=Warren -o APT::FTPArchive::Release::Label=Warren \
    -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
    -o APT::FTPArchive::Release::Components=main \
    -o "APT::FTPArchive::Release::Architectures=$(ls dists/stable/main | sed 's/^binary-//' | xargs)" \
    release dists/stable >Release
  mv Release dists/stable/Release
  gpg --batch --yes --local-user "$key" --clearsign --output dists/stable/InRelease dists/stable/Release
  gpg --batch --yes --local-user "$key" --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release
  cd - >/dev/null
}

# ---- dnf ----

# Each package is signed, and the list of them too: a client may ask for either.
make_dnf() {
  rpmsign --define "_gpg_name $key" --define "__gpg $(type -P gpg)" --define "_gpg_digest_algo sha256" --addsign "$out"/rpm/*.rpm >/dev/null
  createrepo_c --quiet "$out/rpm"
  gpg --batch --yes --local-user "$key" --armor --detach-sign --output "$out/rpm/repodata/repomd.xml.asc" "$out/rpm/repodata/repomd.xml"
}

main "$@"
