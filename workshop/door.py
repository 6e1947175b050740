"""Who may come in, and where: the addresses, links and secrets of `chat.py --serve`.

What this is: the sockets that the server listens on, the links that it prints, and what it compares
in a request before it lets anybody in. It serves chat.py, before a model is loaded and through
workshop/server.py. What this is not: the server, or anything of a conversation.

    python chat.py --serve --host 0.0.0.0 --ssl cert.pem key.pem --token secret
"""
import base64
import binascii
import errno
import hmac
import ipaddress
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

USUAL_PORT = {"http": 80, "https": 443}  # which browsers leave out of Origin and Host
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address that this machine does not have


# --- what a request brings ---

def is_this_machine(host):
    """Whether a host is a name of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def host_of(header):
    """A Host header -> its host without the port, or None where it is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def address_of(origin):
    """http[s]://HOST[:PORT], as browsers send it in Origin -> (host, port).
    Raises ValueError, one sentence, for anything else."""
    parts = urlsplit(origin)
    if parts.scheme not in USUAL_PORT or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"{origin} is no origin: write https://HOST or https://HOST:PORT")
    return parts.hostname, parts.port or USUAL_PORT[parts.scheme]


def is_same_origin(origin, host):
    """Whether an Origin header and a Host header name one server. Each may leave out the port that
    is usual for the scheme. Behind a proxy the scheme is known from Origin alone."""
    scheme, _, _ = origin.partition("://")
    try:
        return address_of(origin) == address_of(f"{scheme}://{host}")
    except ValueError:
        return False


def is_allowed(origin, addresses):
    """Whether an Origin header is one of the addresses that --origin allows."""
    try:
        return address_of(origin) in addresses
    except ValueError:
        return False


def brings_token(token, query, authorization):
    """Whether a request has the token in one of the places for it:

    - ?token=TOKEN in the link,
    - Authorization: Bearer TOKEN,
    - Authorization: Basic, as clients send it for a link of the form http://anything:TOKEN@HOST.
    """
    candidates = [query.get("token", "").encode(errors="surrogateescape")]
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        candidates.append(value.strip().encode(errors="surrogateescape"))
    if kind.lower() == "basic":
        with suppress(binascii.Error, ValueError):  # no base64, or not even ASCII
            candidates.append(base64.b64decode(value).partition(b":")[2])
    return any(hmac.compare_digest(candidate, token.encode()) for candidate in candidates)


def visitor_name(peer, forwarded_for, place):
    """The name of a visitor in the log. peer: (address, port, ...) of its connection, or None.
    forwarded_for: its X-Forwarded-For header. place: what it asked for.

    Decision: anybody can make up X-Forwarded-For, so it is shown as a claim. Only the last entry is
    shown, which the nearest proxy wrote, and only if it is an address."""
    name = f"{bracketed(peer[0])}:{peer[1]}" if peer else "unknown address"
    claim = forwarded_for.rpartition(",")[2].strip()
    with suppress(ValueError):
        name += f" (forwarded for {ipaddress.ip_address(claim)}, as it says)"
    return f"{name}, {place}"


# --- where the server listens ---

@dataclass(frozen=True)
class Door:
    """Where visitors come in.

    sockets: bound, and not listening yet, so that nobody waits while a model is loaded.
    host: as it stands in links; a number where --host named an address in another way.
    port: of all sockets. secure: the certificate for https, or None for http."""
    sockets: tuple
    host: str
    port: int
    secure: ssl.SSLContext | None

    @property
    def is_local(self):
        """Whether this machine alone can come in."""
        return is_this_machine(self.host)


def open_door(args):
    """Find out what is wrong with the options of --serve, and bind -> Door.
    Raises ValueError or OSError, one sentence."""
    if not 0 < args.serve < 2**16:
        raise ValueError(f"--serve takes a port from 1 to 65535, not {args.serve}")
    if args.token is not None and not args.token.strip():
        raise ValueError("--token is empty: give the secret itself, or leave it out")
    if args.longest is not None and not 0 < args.longest < 1e6:
        raise ValueError(f"--longest takes minutes, a number above 0, not {args.longest}")
    for origin in args.origin:
        try:
            address_of(origin)
        except ValueError as error:
            raise ValueError(f"--origin: {error}") from None
    secure = certificate(*args.ssl) if args.ssl else None
    sockets = bind(args.host, args.serve)
    host = args.host
    number = sockets[0].getsockname()[0]
    if host != "localhost" and (is_this_machine(number) or is_every_address(number)):
        host = number
    return Door(sockets, host, args.serve, secure)


def certificate(cert, key):
    """Two files -> what https is served with. Raises ValueError, one sentence."""
    secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        secure.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"--ssl {cert} {key} is no certificate and its key: {error}") from None
    return secure


def bind(host, port):
    """A bound socket for each address that the host has here -> tuple of one or more.
    Raises ValueError or OSError, one sentence."""
    sockets = []
    failure = None
    for family, kind, protocol, _, address in addresses_of(host, port):
        try:
            sockets.append(bind_one(family, kind, protocol, address))
        except OSError as error:
            failure = error
            if error.errno not in NOT_HERE:
                break  # ::1 may be missing where 127.0.0.1 is there, but not the other way about
    if not sockets or (failure and failure.errno not in NOT_HERE):
        raise OSError(why_not_bound(failure, host, port))
    return tuple(sockets)


def addresses_of(host, port):
    """What getaddrinfo knows of the host, each address once. Raises ValueError, one sentence."""
    try:
        if not host:
            raise ValueError
        kind = socket.SOCK_STREAM
        addresses = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        return list(dict.fromkeys(addresses))
    except (OSError, ValueError):  # UnicodeError, a ValueError, for what no name can be
        raise ValueError(f"--host {host!r} is no address: take localhost, 0.0.0.0 for every "
                         "address of this machine, or one of them") from None


def bind_one(family, kind, protocol, address):
    """One bound socket. Raises OSError, the system's."""
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def why_not_bound(error, host, port):
    """One sentence for an OSError of bind."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use: end the program that has it, or take --serve OTHER-PORT"
    if error.errno == errno.EACCES:
        return f"port {port} is for administrators: take one above 1023 with --serve PORT"
    if error.errno in NOT_HERE:
        return f"--host {host} is no address of this machine: take localhost or 0.0.0.0"
    return f"--host {host}, port {port} cannot be opened: {error.strerror or error}"


# --- what is printed when the server is ready ---

def bracketed(host):
    """A host as it stands in a link."""
    return f"[{host}]" if ":" in host else host


def is_every_address(host):
    """Whether this is 0.0.0.0 or ::."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def own_address(family):
    """The address by which other machines reach this one, or None. Nothing is sent: connecting a
    datagram socket only looks up the route, here to an address that is reserved for examples."""
    example = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect((example, 9))
            return route.getsockname()[0]
    except OSError:
        return None


def invitation(door, token):
    """Links that work in a browser, and what is missing where none can work -> lines."""
    query = f"?token={quote(token, safe='')}" if token else ""

    def link(scheme, host):
        return f"{scheme}://{bracketed(host)}:{door.port}/{query}"

    scheme = "https" if door.secure else "http"
    if door.is_local:
        return f"Open {link(scheme, door.host)} and talk; Ctrl-C ends it."
    lines = []
    elsewhere = door.host
    if is_every_address(door.host):
        is_ipv6 = ":" in door.host
        here = "::1" if is_ipv6 else "localhost"
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        elsewhere = own_address(family) or "ADDRESS-OF-THIS-MACHINE"
        lines.append(f"Open {link(scheme, here)} on this machine and talk; Ctrl-C ends it.")
    if door.secure:
        lines.append(f"Open {link(scheme, elsewhere)} on other machines.")
    elif is_every_address(door.host):
        lines.append("On other machines browsers give a microphone to https alone: "
                     f"add --ssl CERT KEY, then open {link('https', elsewhere)}")
    else:
        lines.append(f"Serving {link(scheme, elsewhere)}, where browsers give no microphone: "
                     "add --ssl CERT KEY, or take --host 0.0.0.0 and open localhost.")
    if not token:
        lines.append("Warning: everybody who reaches this machine can talk with the model; "
                     "--token SECRET lets in only who knows it.")
    return "\n".join(lines)
