"""Bearer tokens and what they allow (RFC 6750)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from indexer.errors import TagdexError

READ, WRITE = "read", "write"
SCOPES = (READ, WRITE)
SHORTEST = 16  # characters of a token

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ASKING = frozenset(
    {"/v1/search", "/v1/search/batch", "/v1/similar", "/v1/facets", "/v1/tag", "/v1/embeddings"}
)  # that are POSTs because of their bodies, and change nothing
_LOOPBACK_NAMES = frozenset({"localhost"})


class TokenError(TagdexError):
    """A token or its scopes as the operator gave them cannot be used."""


@dataclass(frozen=True, slots=True)
class Token:
    """The SHA-256 of a token, and the scopes that it has."""

    digest: bytes
    scopes: frozenset[str]


class Tokens:
    """The tokens that a service accepts; without any, everybody may do everything."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens = tuple(tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def scopes(self, header: str | None) -> frozenset[str] | None:
        """What the bearer of an Authorization header may do; `None` where it holds no known token.

        Compared with every token, by digests of equal length, in a time that does not depend on where they differ.
        """
        scheme, _, given = (header or "").partition(" ")
        digest = _digest(given.strip())
        found: frozenset[str] | None = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token.scopes
        return found if scheme.lower() == "bearer" else None


def parse_token(text: str) -> Token:
    """The token in "read:TOKEN", "write:TOKEN" or "read,write:TOKEN". Raises `TokenError`, which never shows it."""
    scopes, colon, token = text.strip().partition(":")
    named = {scope.strip() for scope in scopes.split(",")}
    if not colon or not named <= set(SCOPES):
        raise TokenError("a token is given as SCOPES:TOKEN, where SCOPES are read, write or read,write")
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"a token needs at least {SHORTEST} printable ASCII characters without spaces")
    return Token(_digest(token), frozenset(named))


def needed_scope(method: str, path: str) -> str | None:
    """The scope that a request needs; `None` where it needs none: the page, the documentation and the health checks.

    A request that is not known to change nothing needs `WRITE`, whatever routes there are.

    >>> needed_scope("POST", "/v1/search"), needed_scope("DELETE", "/v1/documents/1"), needed_scope("GET", "/")
    ('read', 'write', None)
    """
    if method not in _SAFE:
        return READ if method == "POST" and path in _ASKING else WRITE
    return None if path in _OPEN or path.startswith("/page/") else READ


def is_loopback(host: str) -> bool:
    """Whether a host, as in a URL and without its port, is this machine alone.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def without_port(host: str) -> str:
    """The host of a Host header.

    >>> without_port("[::1]:80"), without_port("localhost:8000"), without_port("127.0.0.1")
    ('[::1]', 'localhost', '127.0.0.1')
    """
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
