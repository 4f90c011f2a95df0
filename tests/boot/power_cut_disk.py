"""A disk that a power cut leaves as it leaves a cheap card: what was flushed is there, of the rest any part may be.

It is served to the emulated board over NBD. What the board writes stays in memory until it asks for a flush, or says of
a write that it must reach the medium at once. At a cut each sector that waits is kept or lost by the throw of a coin,
so that later writes survive earlier ones and a block may be half old and half new. But for ext4's superblock, whose two
sectors are kept or lost together: half of it is no file system, and the board has nothing that repairs one at its start.
"""

import os
import random
import socket
import struct
import threading

SECTOR = 512
SUPERBLOCK = (2, 3)

# The parts of the NBD protocol that QEMU uses.
GREETING = b"NBDMAGICIHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_REPLY = 0x3E889045565A9
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_GO = 1, 2, 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
REQUEST, REPLY = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FUA = 1
EINVAL = 22


class PowerCutDisk:
    """Serves a file of raw sectors at a Unix socket, to one board at a time."""

    def __init__(self, image, address):
        self.address = address
        self.file = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.waiting = {}
        self.lock = threading.Lock()
        self.flushes = self.sectors_written = 0
        self.on = True
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(address))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, seed):
        """The power is gone: of what waits some sectors are kept and the others lost. How many, each."""
        coin = random.Random(seed)
        with self.lock:
            # From here on nothing that is still in a socket reaches the medium.
            self.on = False
            thrown = {sector: coin.random() < 0.5 for sector in sorted(self.waiting)}
            if any(thrown.get(sector) for sector in SUPERBLOCK):
                thrown.update((sector, True) for sector in SUPERBLOCK if sector in thrown)
            kept = [sector for sector, stays in thrown.items() if stays]
            lost = len(self.waiting) - len(kept)
            for sector in kept:
                os.pwrite(self.file, self.waiting[sector], sector * SECTOR)
            self.waiting.clear()
        return len(kept), lost

    def close(self):
        """The board is off. What waits is written, unless the power was cut before."""
        with self.lock:
            if self.on:
                self._flush()
            self.on = False
        self.listener.close()
        os.close(self.file)

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                with connection, connection.makefile("rb") as incoming:
                    if self._agree(connection, incoming):
                        self._requests(connection, incoming)
            except OSError:
                pass  # The board was switched off.

    def _agree(self, connection, incoming):
        connection.sendall(GREETING + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
        incoming.read(4)
        export = struct.pack(">QH", self.size, HAS_FLAGS | SEND_FLUSH | SEND_FUA)
        while header := incoming.read(16):
            _, option, length = struct.unpack(">QII", header)
            incoming.read(length)

            def reply(kind, data=b"", option=option):
                connection.sendall(struct.pack(">QIII", OPTION_REPLY, option, kind, len(data)) + data)

            if option == OPTION_EXPORT_NAME:
                connection.sendall(export)
                return True
            if option == OPTION_GO:
                reply(REPLY_INFO, struct.pack(">H", 0) + export)
                reply(REPLY_ACK)
                return True
            if option == OPTION_ABORT:
                return False
            reply(REPLY_UNSUPPORTED)
        return False

    def _requests(self, connection, incoming):
        while header := incoming.read(28):
            magic, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", header)
            if magic != REQUEST or kind == DISCONNECT:
                return
            data, error = b"", 0
            content = incoming.read(length) if kind == WRITE else b""
            with self.lock:
                if not self.on:
                    return
                if kind == READ:
                    data = self._read(offset, length)
                elif kind == WRITE:
                    self._write(offset, content, flags & FUA)
                elif kind == FLUSH:
                    self._flush()
                else:
                    error = EINVAL
            connection.sendall(struct.pack(">IIQ", REPLY, error, handle) + data)

    def _read(self, offset, length):
        data = bytearray(os.pread(self.file, length, offset))
        if self.waiting:
            for at in range(0, length, SECTOR):
                newer = self.waiting.get((offset + at) // SECTOR)
                if newer:
                    data[at : at + SECTOR] = newer
        return bytes(data)

    def _write(self, offset, content, at_once):
        first = offset // SECTOR
        self.sectors_written += len(content) // SECTOR
        for n in range(len(content) // SECTOR):
            if at_once:
                self.waiting.pop(first + n, None)
            else:
                self.waiting[first + n] = content[n * SECTOR : (n + 1) * SECTOR]
        if at_once:
            os.pwrite(self.file, content, offset)

    def _flush(self):
        self.flushes += 1
        for sector, content in sorted(self.waiting.items()):
            os.pwrite(self.file, content, sector * SECTOR)
        self.waiting.clear()
