# shellcheck shell=bash disable=SC2154,SC2155
#
# Apache's mod_dav (over TLS, with a password), nginx with dav-ext, and lighttpd, from Debian's packages, each with files of its own. Sourced by
# scripts/stores, in a folder of its own.

# shellcheck source=../stores
: "${ashlar:?is run by scripts/stores}"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done' EXIT

need_packages apache2-bin curl openssl libxml2 libpcre2-8-0 libsqlite3-0 libnettle8 libxxhash0
# These packages would start servers of the system's own; only their files are wanted.
software=${XDG_CACHE_HOME:-$HOME/.cache}/ashlar/webdav
for package in nginx libnginx-mod-http-dav-ext lighttpd lighttpd-mod-webdav; do
    [[ -d $software/$package ]] && continue
    say "webdav: downloading $package"
    download_package "$package" "$software/new-$package"
    mv "$software/new-$package" "$software/$package"
done
here=$PWD
mkdir -p apache/files nginx/files nginx/temporary lighttpd/files

password=$(head -c 12 /dev/urandom | base64 -w 0 | tr -d '+/=')
echo "disks:$(openssl passwd -apr1 "$password")" >apache/users
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
    -addext 'subjectAltName=IP:127.0.0.1' -keyout apache/key -out apache/certificate >openssl.log 2>&1 || fail "making a certificate"
# Started by root, its processes are those of `daemon`, who must come to its files.
if [[ $(id -u) == 0 ]]; then
    chmod o+x "$loopback" "$here" apache
    chown -R daemon apache/files
fi
modules=$(dpkg -L apache2-bin | grep '/mod_dav_fs.so$')
modules=${modules%/*}
cat >apache/configuration <<END
ServerRoot $here/apache
ServerName localhost
Listen 127.0.0.1:$first_port
PidFile $here/apache/pid
ErrorLog $here/apache-errors.log
$(for module in mpm_event authz_core authn_core authn_file authz_user auth_basic dav dav_fs ssl; do
    echo "LoadModule ${module}_module $modules/mod_$module.so"
done)
User daemon
DavLockDB $here/apache/files/.locks
DocumentRoot $here/apache/files
SSLEngine on
SSLCertificateFile $here/apache/certificate
SSLCertificateKeyFile $here/apache/key
<Directory $here/apache/files>
    Dav On
    AuthType Basic
    AuthName disks
    AuthUserFile $here/apache/users
    Require valid-user
</Directory>
END
cat >nginx/configuration <<END
load_module $software/libnginx-mod-http-dav-ext/usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
pid $here/nginx/pid;
error_log $here/nginx-errors.log;
worker_processes 2;
$([[ $(id -u) != 0 ]] || echo 'user root;')
events {}
http {
    access_log off;
$(for kind in client_body proxy fastcgi uwsgi scgi; do echo "    ${kind}_temp_path $here/nginx/temporary/$kind;"; done)
    server {
        listen 127.0.0.1:$((first_port + 3));
        root $here/nginx/files;
        client_max_body_size 0;
        dav_methods PUT DELETE MKCOL COPY MOVE;
        dav_ext_methods PROPFIND OPTIONS;
    }
    server {
        listen 127.0.0.1:$((first_port + 4));
        root $here/nginx/files;
    }
}
END
cat >lighttpd/configuration <<END
server.port = $((first_port + 5))
server.bind = "127.0.0.1"
server.document-root = "$here/lighttpd/files"
server.errorlog = "$here/lighttpd-errors.log"
server.modules = ("mod_webdav")
webdav.activate = "enable"
END
begin apache apache2 -f "$here/apache/configuration" -D FOREGROUND
await apache curl -s -k -o /dev/null "https://127.0.0.1:$first_port/"
begin nginx "$software/nginx/usr/sbin/nginx" -c "$here/nginx/configuration" -p "$here/nginx" -e "$here/nginx-errors.log"
await nginx curl -s -o /dev/null "http://127.0.0.1:$((first_port + 3))/"
begin lighttpd "$software/lighttpd/usr/sbin/lighttpd" -D -f lighttpd/configuration -m "$software/lighttpd-mod-webdav/usr/lib/lighttpd"
await lighttpd curl -s -o /dev/null "http://127.0.0.1:$((first_port + 5))/"

# trial NAME: the suite and the life of a volume, at the URL of the environment.
trial() {
    ASHLAR_TEST_WEBDAV_URL=${ASHLAR_STORE__URL%/v}/conformance conformance external_webdav
    life create-only
    # Folders stay, files do not, but what a server that was killed had begun, and some hundred bytes of a deleted volume.
    find "$here/$1/files" -type f -size +16 -not -path '*/=ashlar-tmp/*' -not -path '*/conformance/*' -not -name '.locks*' >left.log
    [[ ! -s left.log ]] || fail "delete left files"
    rm -rf state-?
    say "webdav: $1: the stores' suite and the life of a volume"
}

export ASHLAR_STORE__WEBDAV__ALLOW_UNSYNCED=true
export ASHLAR_STORE__URL=webdavs://disks@127.0.0.1:$first_port/v ASHLAR_STORE__WEBDAV__CA_BUNDLE=$here/apache/certificate
refused "WEBDAV_PASSWORD" create w --size 1G --state state-1
WEBDAV_PASSWORD=wrong refused "401.*WEBDAV_PASSWORD" create w --size 1G --state state-1
export WEBDAV_PASSWORD=$password
ASHLAR_STORE__WEBDAV__ALLOW_UNSYNCED=false refused "store.webdav.allow_unsynced" create w --size 1G --state state-1
ASHLAR_STORE__WEBDAV__CA_BUNDLE=/etc/hostname refused "store.webdav.ca_bundle" create w --size 1G --state state-1
ASHLAR_STORE__URL=webdav://127.0.0.1:$((first_port + 3))/v refused "store.webdav.allow_http" create w --size 1G --state state-1
trial apache

unset WEBDAV_PASSWORD ASHLAR_STORE__WEBDAV__CA_BUNDLE
export ASHLAR_STORE__WEBDAV__ALLOW_HTTP=true
ASHLAR_STORE__URL=webdav://127.0.0.1:$((first_port + 4))/v refused "405.*dav-ext" create w --size 1G --state state-1
export ASHLAR_STORE__URL=webdav://127.0.0.1:$((first_port + 3))/v
trial nginx
export ASHLAR_STORE__URL=webdav://127.0.0.1:$((first_port + 5))/v
trial lighttpd
echo "webdav: Apache's mod_dav, nginx with dav-ext and lighttpd pass the stores' suite and the race, keep what was flushed through a kill and a takeover from a frozen server"
