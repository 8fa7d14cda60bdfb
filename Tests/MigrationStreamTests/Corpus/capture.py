#!/usr/bin/env python3
"""Captures the streams in this directory from real QEMU processes.

    capture.py OUT-DIRECTORY NAME=QEMU-SYSTEM-RISCV64 [NAME=...] [--only WORD] [--boot IMAGE INITRAMFS REGEX]

NAME is the version as it stands in the file names: 7.2=qemu-system-riscv64. Every stream is of a machine that has
just been made or that runs the few instructions below, so nothing in them is anybody else's. Files are gzip without
time stamp; the side channels of a move go into files of their own. With --boot also the state of a Linux guest with
virtio devices in use, taken when its console shows REGEX; its page records are dropped, so nothing of its memory stays.
"""
import array, gzip, json, os, re, shlex, socket, struct, subprocess, sys, tempfile, threading, time

# A guest that rewrites one word in each of 16 pages for ever:
#   lui t0,0x80010 (after shifting: see below) ; loop: ...
def program():
    words = []
    def lui(rd, imm): words.append(imm << 12 | rd << 7 | 0x37)
    def addi(rd, rs, imm): words.append((imm & 0xfff) << 20 | rs << 15 | rd << 7 | 0x13)
    def slli(rd, rs, n): words.append(n << 20 | rs << 15 | 1 << 12 | rd << 7 | 0x13)
    def sd(rs2, rs1, imm): words.append((imm >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | 3 << 12 | (imm & 31) << 7 | 0x23)
    def add(rd, a, b): words.append(b << 20 | a << 15 | rd << 7 | 0x33)
    def bne(a, b, off):
        words.append((off >> 12 & 1) << 31 | (off >> 5 & 0x3f) << 25 | b << 20 | a << 15 | 1 << 12
                     | (off >> 1 & 15) << 8 | (off >> 11 & 1) << 7 | 0x63)
    addi(5, 0, 1); slli(5, 5, 31)            # t0 = 0x80000000
    lui(6, 0x100); add(5, 5, 6)              # + 1 MiB
    lui(7, 1)                                # t2 = 4096
    lui(28, 0x10); add(28, 28, 5)            # t3 = end: 16 pages on
    addi(29, 5, 0)                           # outer: t4 = start
    addi(30, 30, 1)                          # t5 counts
    sd(30, 29, 16); add(29, 29, 7)           # inner
    bne(29, 28, -8)
    words.append(0)                          # patched: jump to outer
    back = -4 * (len(words) - 1 - 7)
    words[-1] = ((back >> 20 & 1) << 31 | (back >> 1 & 0x3ff) << 21 | (back >> 11 & 1) << 20
                 | (back >> 12 & 0xff) << 12 | 0x6f)
    return b''.join(struct.pack('<I', w & 0xffffffff) for w in words)

class Qemu:
    def __init__(self, command, arguments, directory, name, serial='none'):
        path = os.path.join(directory, name + '.qmp')
        self.errors = open(os.path.join(directory, name + '.err'), 'w+b')
        self.process = subprocess.Popen(
            shlex.split(command) + ['-accel', 'tcg', '-display', 'none', '-serial', serial, '-monitor', 'none',
                                    '-qmp', 'unix:%s,server=on,wait=off' % path] + arguments,
            stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors)
        self.socket = connect(path, self)
        self.file = self.socket.makefile('rwb', buffering=0)
        self.file.readline()
        self.command('qmp_capabilities')
    def error(self):
        self.errors.flush()
        return open(self.errors.name).read()
    def command(self, name, **arguments):
        self.file.write(json.dumps({'execute': name, 'arguments': arguments}).encode() + b'\n')
        while True:
            line = self.file.readline()
            if not line: raise RuntimeError('QMP closed: ' + self.error())
            reply = json.loads(line)
            if 'error' in reply: raise RuntimeError('%s: %s' % (name, reply['error']['desc']))
            if 'return' in reply: return reply['return']
    def capabilities(self, *names):
        self.command('migrate-set-capabilities', capabilities=[{'capability': n, 'state': True} for n in names])
    def wait(self, *statuses, seconds=60):
        end = time.time() + seconds
        while time.time() < end:
            status = self.command('query-migrate').get('status')
            if status in statuses: return status
            if status in ('failed', 'cancelled'): raise RuntimeError('migration %s: %s' % (status, self.error()))
            time.sleep(0.02)
        raise TimeoutError('migration is %s' % status)
    def quit(self):
        try: self.command('quit')
        except Exception: pass
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill()

def connect(path, qemu=None):
    for _ in range(500):
        if qemu and qemu.process.poll() is not None: raise RuntimeError('QEMU exited: ' + qemu.error())
        try:
            s = socket.socket(socket.AF_UNIX); s.connect(path); return s
        except OSError: time.sleep(0.02)
    raise TimeoutError(path)

class Recorder:
    """Listens where a destination would, hands every byte on to the destination, keeps a copy."""
    def __init__(self, listen, forward=None):
        self.forward = forward
        self.server = socket.socket(socket.AF_UNIX); self.server.bind(listen); self.server.listen(8)
        self.connections = []; self.threads = []
        threading.Thread(target=self.accept, daemon=True).start()
    def accept(self):
        while True:
            try: source, _ = self.server.accept()
            except OSError: return
            there, back = bytearray(), bytearray()
            self.connections.append((there, back))
            target = connect(self.forward) if self.forward else None
            self.pump(source, target, there)
            if target: self.pump(target, source, back)
    def pump(self, a, b, copy):
        def run():
            while True:
                try: data = a.recv(1 << 16)
                except OSError: break
                if not data: break
                copy.extend(data)
                if b:
                    try: b.sendall(data)
                    except OSError: break
            if b:
                try: b.shutdown(socket.SHUT_WR)
                except OSError: pass
        t = threading.Thread(target=run, daemon=True); t.start(); self.threads.append(t)
    def finish(self):
        time.sleep(0.3)
        self.server.close()
        for t in self.threads: t.join(5)
        return self.connections

def save(out, name, data):
    with open(os.path.join(out, name + '.gz'), 'wb') as file:
        with gzip.GzipFile(filename='', mode='wb', fileobj=file, mtime=0, compresslevel=9) as packed: packed.write(data)
    print('%-40s %9d bytes, packed %7d' % (name, len(data), os.path.getsize(os.path.join(out, name + '.gz'))))

def to_file(command, arguments, directory, uri=None, prepare=None):
    path = os.path.join(directory, 'stream')
    qemu = Qemu(command, arguments, directory, 'source')
    try:
        if prepare: prepare(qemu)
        qemu.command('migrate', uri=uri or 'exec:cat >' + path); qemu.wait('completed')
    finally: qemu.quit()
    data = open(path, 'rb').read(); os.unlink(path)
    return data

DEVICES = ['-device', 'virtio-rng-device', '-netdev', 'hubport,hubid=0,id=n0', '-device', 'virtio-net-device,netdev=n0,mac=52:54:00:12:34:56',
           '-device', 'virtio-serial-device', '-chardev', 'null,id=c0', '-device', 'virtconsole,chardev=c0',
           '-drive', 'if=none,id=d0,driver=null-co,size=1048576', '-device', 'virtio-blk-device,drive=d0']

def without_pages(data):
    """The stream with every RAM section that holds pages left out, but one empty END."""
    out = bytearray(); o = 8
    def u32(at): return int.from_bytes(data[at:at + 4], 'big')
    o += 5 + u32(o + 1)
    out += data[:o]; ended = False
    while data[o] in (1, 2, 3, 8):
        start = o
        if data[o] == 8: o += 5 + int.from_bytes(data[o + 3:o + 5], 'big'); out += data[start:o]; continue
        kind = data[o]; o += 5
        if kind == 1: o += 1 + data[o] + 8
        while True:
            word = int.from_bytes(data[o:o + 8], 'big'); o += 8; flags = word & 0xfff
            if flags & 0x10: break
            if flags & 0x04:
                left = word & ~0xfff
                while left: o += 1 + data[o]; left -= int.from_bytes(data[o:o + 8], 'big'); o += 8
            elif flags & 0x0a:
                if not flags & 0x20: o += 1 + data[o]
                o += 1 if flags & 2 else 4096
            else: raise ValueError('RAM flags %x at %d' % (flags, o))
        o += 5
        if kind == 1: out += data[start:o]
        elif kind == 3: out += data[start:start + 5] + bytes(7) + b'\x10' + data[o - 5:o]
    return bytes(out + data[o:])

def booted(command, new, directory, boot, modern, cpu=None):
    image, initramfs, pattern = boot
    console = os.path.join(directory, 'console')
    arguments = ['-M', 'virt' + (',acpi=off' if new else ''), '-m', '128M', '-kernel', image, '-initrd', initramfs, '-append', 'console=ttyS0',
                 '-chardev', 'file,id=con,path=' + console, '-device', 'virtio-rng-device',
                 '-netdev', 'user,id=n0,restrict=on', '-device', 'virtio-net-device,netdev=n0,mac=52:54:00:12:34:56',
                 '-device', 'virtio-serial-device', '-chardev', 'null,id=c0', '-device', 'virtconsole,chardev=c0',
                 '-drive', 'if=none,id=d0,driver=null-co,size=1048576', '-device', 'virtio-blk-device,drive=d0']
    if cpu: arguments += ['-cpu', cpu]
    if modern: arguments += ['-global', 'virtio-mmio.force-legacy=false']
    path = os.path.join(directory, 'stream')
    qemu = Qemu(command, arguments, directory, 'source', serial='chardev:con')
    try:
        end = time.time() + 300
        while time.time() < end and not (os.path.exists(console) and re.search(pattern, open(console, errors='replace').read())): time.sleep(0.2)
        if time.time() >= end: raise TimeoutError('console: ' + open(console, errors='replace').read()[-300:])
        qemu.command('stop')
        qemu.command('migrate-set-parameters', **{'max-bandwidth': 1 << 33})
        qemu.command('migrate', uri='exec:cat >' + path); qemu.wait('completed')
    finally: qemu.quit()
    return without_pages(open(path, 'rb').read())

def main():
    arguments = sys.argv[1:]
    boot = None
    if '--boot' in arguments:
        i = arguments.index('--boot'); boot = arguments[i + 1:i + 4]; del arguments[i:i + 4]
    only = None
    if '--only' in arguments:
        i = arguments.index('--only'); only = arguments[i + 1]; del arguments[i:i + 2]
    out = arguments[0]; os.makedirs(out, exist_ok=True)
    for pair in arguments[1:]:
        version, command = pair.split('=', 1)
        new = int(version.split('.')[0]) >= 10
        def make(name, body):
            if only and only not in name: return
            with tempfile.TemporaryDirectory() as directory:
                try: body(name + '-' + version, directory)
                except Exception as error: print('%-40s NOT TAKEN: %s' % (name + '-' + version, str(error).strip()[:200]))
        none = ['-S', '-M', 'none', '-m', '1']
        plain = ['-S', '-M', 'virt' + (',acpi=off' if new else ''), '-m', '4M', '-bios', 'none', '-nic', 'none']
        make('none', lambda name, d: save(out, name, to_file(command, none, d)))
        make('virt', lambda name, d: save(out, name, to_file(command, plain, d)))
        make('virt-plain', lambda name, d: save(out, name, to_file(command, plain + ['-cpu', 'rv64,h=off'], d)))
        make('virt-2-harts', lambda name, d: save(out, name, to_file(command, plain + ['-smp', '2'], d)))
        make('virt-devices', lambda name, d: save(out, name, to_file(command, plain + DEVICES, d)))
        if new: make('virt-acpi', lambda name, d: save(out, name, to_file(command, [a.replace(',acpi=off', '') for a in plain], d)))
        make('none-capabilities', lambda name, d: save(out, name, to_file(
            command, none + ['-uuid', '00112233-4455-6677-8899-aabbccddeeff'], d,
            prepare=lambda q: q.capabilities('x-ignore-shared', 'validate-uuid'))))
        if new:
            def mapped(name, d):
                save(out, name, to_file(command, none, d, uri='file:' + os.path.join(d, 'stream'),
                                        prepare=lambda q: q.capabilities('mapped-ram')))
            make('none-mapped-ram', mapped)
        if boot:
            make('booted-legacy', lambda name, d: save(out, name, booted(command, new, d, boot, False)))
            make('booted-modern', lambda name, d: save(out, name, booted(command, new, d, boot, True)))
            make('booted-plain', lambda name, d: save(out, name, booted(command, new, d, boot, True, 'rv64,h=off')))
        with open(os.path.join(out, '.program'), 'wb') as file: file.write(program())
        running = ['-M', 'virt' + (',acpi=off' if new else ''), '-m', '4M', '-bios', os.path.join(out, '.program'), '-nic', 'none',
                   '-cpu', 'rv64,h=off']
        def pair_of(name, d, caps, parameters={}, passes=0, postcopy=False):
            destination = Qemu(command, running + ['-incoming', 'defer'], d, 'destination')
            source = Qemu(command, running, d, 'source')
            try:
                for q in (source, destination):
                    q.capabilities(*caps)
                    if parameters: q.command('migrate-set-parameters', **parameters)
                destination.command('migrate-incoming', uri='unix:' + d + '/real')
                recorder = Recorder(d + '/tap', d + '/real')
                if passes: source.command('migrate-set-parameters', **{'downtime-limit': 1, 'max-bandwidth': 1 << 20})
                elif postcopy: source.command('migrate-set-parameters', **{'downtime-limit': 1, 'max-bandwidth': 1 << 16})
                source.command('migrate', uri='unix:' + d + '/tap')
                if postcopy:
                    source.wait('active'); time.sleep(0.3); source.command('migrate-start-postcopy')
                if passes:
                    end = time.time() + 60
                    while source.command('query-migrate').get('ram', {}).get('dirty-sync-count', 0) < passes and time.time() < end: time.sleep(0.02)
                    source.command('migrate-set-parameters', **{'downtime-limit': 2000, 'max-bandwidth': 1 << 30})
                source.wait('completed')
                found = recorder.finish()
            finally: source.quit(); destination.quit()
            for index, (there, back) in enumerate(found):
                save(out, name + ('' if index == 0 else '-channel%d' % index), bytes(there))
                if back: save(out, name + '-return%s' % ('' if index == 0 else index), bytes(back))
        make('running-return-path', lambda name, d: pair_of(name, d, ['return-path']))
        make('running-xbzrle', lambda name, d: pair_of(name, d, ['xbzrle'], passes=4))
        make('running-multifd', lambda name, d: pair_of(name, d, ['multifd'], {'multifd-channels': 2}))
        make('running-postcopy', lambda name, d: pair_of(name, d, ['postcopy-ram'], postcopy=True))
        if new:
            def cpr(name, d):
                source = Qemu(command, ['-S', '-M', 'virt,acpi=off,memory-backend=m,aux-ram-share=on', '-m', '2M', '-bios', 'none', '-nic', 'none',
                                        '-object', 'memory-backend-memfd,id=m,size=2M,share=on'], d, 'source')
                pieces = []
                server = socket.socket(socket.AF_UNIX); server.bind(d + '/cpr'); server.listen(1)
                def serve():
                    s, _ = server.accept()
                    while True:
                        data, ancillary, flags, _ = s.recvmsg(65536, socket.CMSG_SPACE(64))
                        fds = 0
                        for level, kind, content in ancillary:
                            for fd in array.array('i', content): os.close(fd); fds += 1
                        if not data: break
                        pieces.append((data, fds))
                    s.close()
                t = threading.Thread(target=serve); t.start()
                main_recorder = Recorder(d + '/main')
                try:
                    source.command('migrate-set-parameters', mode='cpr-transfer')
                    source.command('migrate', channels=[
                        {'channel-type': 'main', 'addr': {'transport': 'socket', 'type': 'unix', 'path': d + '/main'}},
                        {'channel-type': 'cpr', 'addr': {'transport': 'socket', 'type': 'unix', 'path': d + '/cpr'}}])
                    source.wait('completed')
                finally: source.quit(); t.join(5)
                found = main_recorder.finish()
                print('   descriptors per piece:', [n for _, n in pieces])
                save(out, name, b''.join(p for p, _ in pieces))
                save(out, name + '-main', bytes(found[0][0]))
            make('virt-cpr', cpr)
        os.unlink(os.path.join(out, '.program'))

if __name__ == '__main__': main()
