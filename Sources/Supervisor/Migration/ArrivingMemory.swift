import Glibc
import GuestMemory
import LinuxCalls
import Machine
import MigrationChannels
import MigrationEngine
import QMPProtocol
import Synchronization

/// RAM that a source hands over by its descriptors before its stream comes (mode `cpr-transfer`).
///
/// What nobody can shrink any more, and the guest's RAM in any case, is adopted by the machine. QEMU leaves the files of flash
/// and boot ROM open to shrinking; what they hold, a few pages, is copied when the guest stands still, so that this process
/// and its successors depend on sealed files alone.
final class ArrivingMemory: Sendable {
    /// For the machine to adopt, by block name.
    let files: [String: OwnedDescriptor]
    private let copied: [CPRChannel.File]
    private let transport: DescriptorTransport

    private static let silenceMilliseconds: UInt64 = 30_000

    /// Waits at an address for the source and takes what it hands over.
    /// - Parameters:
    ///   - memoryByteCount: How much RAM the machine has; nil takes what comes.
    ///   - wake: Readable when this process is to end; nil waits for ever.
    /// - Throws: ``Refusal``; the source, whose channel is closed, keeps its guest.
    static func await(
        _ argument: String, memoryByteCount: UInt64?, wake: OwnedDescriptor? = nil
    ) throws(Refusal) -> ArrivingMemory {
        let address: MigrationAddress
        do { address = try MigrationAddress(argument: argument) } catch {
            throw Refusal(.usage, "--incoming: \(error)")
        }
        guard case .unix(let path) = address else {
            throw Refusal(.usage, "--incoming: descriptors cross by a unix socket, not by \(address)")
        }
        let transport: DescriptorTransport
        do throws(SystemCallError) {
            let listener = try UnixListener.bind(path: path)
            defer { if !path.hasPrefix("@") { FileInformation.remove(path) } }
            let never = try OwnedDescriptor.event()
            let ready = try GatheredIO.wait(
                for: Int16(POLLIN), on: listener, wake: wake ?? never, timeoutMilliseconds: -1)
            guard ready.isReady else { throw SystemCallError("accept", .canceled, subject: path) }
            transport = try DescriptorTransport(name: "\(address)", socket: try StreamSocket.accept(from: listener))
        } catch { throw Refusal(.incomingFailed, "no guest came to \(address): \(error)") }
        transport.setStallLimit(milliseconds: silenceMilliseconds)
        do {
            return try ArrivingMemory(try CPRChannel.receive(from: transport), transport, memoryByteCount)
        } catch let refusal as Refusal {
            transport.close()
            throw refusal
        } catch {
            transport.close()
            throw Refusal(.incomingFailed, "the guest's memory was not taken over: \(error)")
        }
    }

    private init(
        _ received: [CPRChannel.File], _ transport: DescriptorTransport, _ memoryByteCount: UInt64?
    ) throws(Refusal) {
        var wanted = VirtMachine.fixedBlocks
        let ram = received.first { $0.name == VirtMachine.ramName }
        wanted[VirtMachine.ramName] = memoryByteCount.map { Int($0) } ?? ram?.byteCount ?? 0
        var files: [String: OwnedDescriptor] = [:]
        var copied: [CPRChannel.File] = []
        for file in received {
            guard let byteCount = wanted.removeValue(forKey: file.name) else {
                // ACPI tables: QEMU's own.
                if VirtMachine.surplusBlocks[file.name] != nil { continue }
                throw Refusal(
                    "the source has a RAM block \(file.name), which no machine here has; its RAM must be a backend of "
                        + "this name: -object memory-backend-memfd,id=\(VirtMachine.ramName),share=on,size=... "
                        + "-machine virt,memory-backend=\(VirtMachine.ramName),aux-ram-share=on")
            }
            guard file.byteCount == byteCount else {
                throw Refusal(
                    "RAM block \(file.name) has \(SizeText.format(UInt64(file.byteCount))), "
                        + "\(SizeText.format(UInt64(byteCount))) here; see --memory")
            }
            if file.isSealed || file.name == VirtMachine.ramName {
                files[file.name] = file.file
            } else {
                copied.append(file)
            }
        }
        guard wanted.isEmpty else {
            throw Refusal(
                "the source hands over no file for RAM block \(wanted.keys.sorted().joined(separator: ", ")); "
                    + "QEMU must be started with aux-ram-share=on and a backend with share=on")
        }
        self.files = files
        self.copied = copied
        self.transport = transport
    }

    /// The machine stands and the main channel is open: the source goes on.
    func letSourceGoOn() { transport.close() }

    /// Page tables for RAM while the guest runs at the source; what is left after a moment is filled beside it.
    func populate(_ blocks: [RAMBlock]) {
        let deadline = monotonicNanoseconds() + 20_000_000
        for block in blocks {
            guard files[block.name] != nil, let file = block.file else { continue }
            PageTables.populateSoon(block.mapping, of: file, until: deadline)
        }
    }

    /// Copies what was not adopted. The guest stands still.
    func fillRest(of blocks: [RAMBlock]) throws {
        for source in copied {
            guard let block = blocks.first(where: { $0.name == source.name }) else { continue }
            try source.file.forEachData(byteCount: block.byteCount) { (range) throws(SystemCallError) in
                var done = range.lowerBound
                while done < range.upperBound {
                    let space = unsafe UnsafeMutableRawBufferPointer(
                        start: block.base + done, count: range.upperBound - done)
                    let count = try unsafe source.file.read(at: UInt64(done), into: space)
                    guard count > 0 else { throw SystemCallError("pread", .ioError, subject: source.name) }
                    done += count
                }
            }
        }
    }
}
