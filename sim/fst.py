"""Lets Verilator's FST writer be built without the lz4 and zlib development packages.

The writer needs two functions of each library. These stand-ins produce valid streams that store the data as
it is (LZ4 literals, deflate stored blocks); the writer itself then keeps whatever is smaller. The files are
larger than with real compression and every FST reader can read them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["write_stand_ins"]

_LZ4 = """\
// LZ4 block format, literals only: one sequence without a match.
#pragma once
#include <cstring>
static inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }
static inline int LZ4_compress_default(const char* from, char* to, int size, int) {
    unsigned char* out = reinterpret_cast<unsigned char*>(to);
    int rest = size - 15;
    *out++ = static_cast<unsigned char>((size < 15 ? size : 15) << 4);
    if (rest >= 0) {
        for (; rest >= 255; rest -= 255) *out++ = 255;
        *out++ = static_cast<unsigned char>(rest);
    }
    std::memcpy(out, from, size);
    return static_cast<int>(out + size - reinterpret_cast<unsigned char*>(to));
}
"""

_ZLIB = """\
// zlib format (RFC 1950, 1951), stored blocks only.
#pragma once
#include <cstring>
typedef unsigned char Bytef;
typedef unsigned long uLong;
typedef unsigned long uLongf;
#define Z_OK 0
static inline uLong compressBound(uLong size) { return size + 5 * (size / 65535 + 1) + 6; }
static inline int compress2(Bytef* to, uLongf* room, const Bytef* from, uLong size, int) {
    Bytef* out = to;
    uLong a = 1, b = 0;
    *out++ = 0x78;
    *out++ = 0x01;
    uLong done = 0;
    do {
        const uLong count = size - done < 65535 ? size - done : 65535;
        *out++ = done + count == size;
        *out++ = count & 255;
        *out++ = count >> 8;
        *out++ = ~count & 255;
        *out++ = (~count >> 8) & 255;
        std::memcpy(out, from + done, count);
        for (uLong i = 0; i < count; ++i) {
            a = (a + from[done + i]) % 65521;
            b = (b + a) % 65521;
        }
        out += count;
        done += count;
    } while (done < size);
    *out++ = b >> 8;
    *out++ = b & 255;
    *out++ = a >> 8;
    *out++ = a & 255;
    *room = out - to;
    return Z_OK;
}
"""


def write_stand_ins(folder: Path) -> None:
    """Put `lz4.h`, `zlib.h` and empty libraries of both names into `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lz4.h").write_text(_LZ4)
    (folder / "zlib.h").write_text(_ZLIB)
    for name in ("liblz4.a", "libz.a"):
        subprocess.run(["ar", "cr", str(folder / name)], check=True)
