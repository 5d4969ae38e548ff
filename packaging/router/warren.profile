export WARREN_SOCKET=/var/run/warren/warrend.sock
