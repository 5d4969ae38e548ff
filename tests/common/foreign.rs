//! Programs that other people wrote, and how Headscale is set up.

use std::env;
use std::path::PathBuf;

/// A program in `WARREN_INTEROP_BIN` or on `PATH`.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let folders = [env::var_os("WARREN_INTEROP_BIN"), env::var_os("PATH")];
    folders.iter().flatten().flat_map(env::split_paths).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The configuration of a Headscale that serves at port 8080 of an address and keeps all its files in one folder.
pub(crate) fn configuration(address: &str, dir: &str) -> String {
    format!(
        "server_url: http://{address}:8080
listen_addr: 0.0.0.0:8080
grpc_listen_addr: 127.0.0.1:50443
grpc_allow_insecure: false
noise: {{ private_key_path: {dir}/noise.key }}
prefixes: {{ v4: 100.64.0.0/10, v6: 'fd7a:115c:a1e0::/48', allocation: sequential }}
derp:
  server: {{ enabled: true, region_id: 999, region_code: lab, region_name: Lab, stun_listen_addr: '0.0.0.0:3478',
    private_key_path: {dir}/derp.key, automatically_add_embedded_derp_region: true, ipv4: {address} }}
  urls: []
  paths: []
  auto_update_enabled: false
database: {{ type: sqlite, sqlite: {{ path: {dir}/db.sqlite, write_ahead_log: true }} }}
dns: {{ magic_dns: false, base_domain: lab.example, override_local_dns: false }}
policy: {{ mode: database }}
unix_socket: {dir}/headscale.sock
unix_socket_permission: '0770'
"
    )
}
