"""Enrolment codes: twelve characters that a person reads out, types once, and that are worth nothing afterwards.

The first four name the code, the other eight (40 bits) are its secret. That is few enough to be guessed from a stolen
database at the speed of a plain hash, so the secret is stored under scrypt with a salt of its own; over the network
five attempts are all there ever are, whoever makes them. The alphabet is Crockford's base 32: no letter is mistaken
for a digit, and case, spaces and hyphens do not matter.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ID_CHARS = 4
SECRET_CHARS = 8
ATTEMPTS_MAX = 5
LIFE_S = 3600
"""How long a code counts when nobody says otherwise."""
LIFE_S_MAX = 7 * 86_400
SALT_BYTES = 16
DIGEST_BYTES = 32
_SCRYPT_N = 1 << 14
_SCRYPT_R = 8
_SCRYPT_P = 1
"""16 MB and some tens of milliseconds each (OWASP's password storage sheet, scrypt)."""
_ALIKE = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_TEXT = re.compile(f"[{ALPHABET}]{{{ID_CHARS + SECRET_CHARS}}}")
_TYPED_CHARS_MAX = 40


class Code(NamedTuple):
    """A code in two parts: what it is found by, and what proves it."""

    id: str
    secret: str

    def text(self) -> str:
        """Return the code as it is shown: three groups of four."""
        return f"{self.id}-{self.secret[:4]}-{self.secret[4:]}"


def new_code() -> Code:
    """Return a new random code."""
    characters = "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS + SECRET_CHARS))
    return Code(characters[:ID_CHARS], characters[ID_CHARS:])


def parse_code(text: str) -> Code | None:
    """Return the code that somebody typed, None for what cannot be one. A token never is one: it is longer."""
    if len(text) > _TYPED_CHARS_MAX:
        return None
    plain = text.upper().translate(_ALIKE)
    return Code(plain[:ID_CHARS], plain[ID_CHARS:]) if _TEXT.fullmatch(plain) else None


def new_salt() -> bytes:
    """Return a salt for one code."""
    return secrets.token_bytes(SALT_BYTES)


def digest_of(secret: str, salt: bytes) -> bytes:
    """Return what is stored of a code's secret. Takes tens of milliseconds: call it in a thread."""
    return hashlib.scrypt(
        secret.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=DIGEST_BYTES, maxmem=64 * 1024 * 1024
    )


def is_match(secret: str, salt: bytes, digest: bytes) -> bool:
    """Return whether this is the secret with that digest, comparing in constant time."""
    return hmac.compare_digest(digest_of(secret, salt), digest)
