"""Asks the agent on a socket for its status, and whose an address is: tslocal_status.py SOCKET ADDRESS."""

import sys

from tslocal import Client

socket, address = sys.argv[1:]
with Client(socket_path=socket, use_socket_only=True) as client:
    status = client.status()
    print(status.backend_state, status.tailscale_ips[0])
    for peer in (status.peer or {}).values():
        print("peer", peer.host_name)
    whois = client.who_is(address)
    print("whois", whois.node.computed_name or whois.node.hostinfo.hostname, whois.user_profile.login_name)
