import Glibc
import GuestMemory
import LinuxCalls
import SystemPackage

/// A file that goes into guest memory: opened once, judged by its first bytes, read straight to its place.
struct ImageFile {
    let path: String
    let role: MachineError.ImageRole
    let byteCount: Int
    private let descriptor: OwnedDescriptor

    init(path: String, role: MachineError.ImageRole) throws(MachineError) {
        do {
            descriptor = try OwnedDescriptor.open(path, flags: O_RDONLY)
            let status = try descriptor.status()
            guard status.type == .regular else {
                throw MachineError.image(path: path, role: role, reason: "not a regular file")
            }
            byteCount = status.byteCount
        } catch let error as SystemCallError {
            let reason = error.errno == .noSuchFileOrDirectory ? "no such file" : error.description
            throw .image(path: path, role: role, reason: reason)
        } catch let error as MachineError {
            throw error
        } catch {
            throw .image(path: path, role: role, reason: "\(error)")
        }
        self.path = path
        self.role = role
        guard byteCount > 0 else { throw failure("the file is empty") }
    }

    func failure(_ reason: String) -> MachineError { .image(path: path, role: role, reason: reason) }

    /// The first bytes of the file, at most `count`.
    func head(_ count: Int) throws(MachineError) -> [UInt8] { try bytes(offset: 0, count: min(count, byteCount)) }

    func bytes(offset: Int, count: Int) throws(MachineError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var failed: MachineError?
        unsafe bytes.withUnsafeMutableBytes { buffer in
            do throws(MachineError) { try unsafe read(offset: offset, into: buffer) } catch { failed = error }
        }
        if let failed { throw failed }
        return bytes
    }

    /// Reads a part of the file into guest memory. The caller has made sure that it fits.
    func load(offset: Int = 0, byteCount: Int? = nil, into memory: GuestMemory, at address: UInt64) throws(MachineError)
    {
        let count = byteCount ?? self.byteCount - offset
        guard count > 0 else { return }
        do {
            let target = unsafe try memory.pointer(to: address, byteCount: count, writing: true)
            unsafe try read(offset: offset, into: UnsafeMutableRawBufferPointer(start: target, count: count))
        } catch let error as MachineError {
            throw error
        } catch {
            throw failure("\(error)")
        }
        memory.markWritten(address: address, byteCount: count)
    }

    private func read(offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(MachineError) {
        var done = 0
        while done < buffer.count {
            let got: Int
            do {
                got = try retrying("pread", subject: path) {
                    unsafe pread(
                        descriptor.rawValue, buffer.baseAddress! + done, buffer.count - done, off_t(offset + done))
                }
            } catch { throw failure(error.description) }
            guard got > 0 else {
                throw failure("truncated: \(offset + buffer.count) bytes are needed, \(offset + done) are there")
            }
            done += got
        }
    }
}

extension ImageFile {
    /// What a file that is not what was wanted looks like, for messages; nil when it is not recognised.
    static func kind(of head: [UInt8]) -> String? {
        let known: [(offset: Int, bytes: [UInt8], name: String)] = [
            (4, Array("zimg".utf8), "an EFI zboot image (compressed); unpack it to the flat Image first"),
            (0, [0x1f, 0x8b], "a gzip file; unpack it with gunzip first"),
            (0, [0xfd, 0x37, 0x7a, 0x58, 0x5a], "an xz file; unpack it first"),
            (0, [0x28, 0xb5, 0x2f, 0xfd], "a zstd file; unpack it first"),
            (0, Array("BZh".utf8), "a bzip2 file; unpack it first"),
            (0x38, Array("ARMd".utf8), "an arm64 Linux image"),
            (0x202, Array("HdrS".utf8), "an x86 Linux bzImage"),
            (0, [0x7f, 0x45, 0x4c, 0x46], "an ELF file"),
            (0, [0xd0, 0x0d, 0xfe, 0xed], "a device tree"),
            (0, Array("070701".utf8), "a cpio archive"),
            (0, Array("MZ".utf8), "an EFI program"),
        ]
        return known.first { head.dropFirst($0.offset).starts(with: $0.bytes) }?.name
    }
}
