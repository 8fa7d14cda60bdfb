import LinuxCalls
import MigrationChannels

/// A program whose memory, descriptors and state go to a successor process.
public protocol Migratable: AnyObject {
    /// The memory that goes along.
    var blocks: [MemoryBlock] { get }
    /// Descriptors that go along, by name: listeners, clients, files with their locks. They stay open here until the
    /// successor has them.
    var descriptors: [String: CInt] { get }
    /// Stops everything that touches the blocks or the descriptors, and writes down what is in neither.
    func pause() throws -> [UInt8]
    /// The successor will not go on: continue here.
    func resume() throws
}

/// What a finished move took; nanoseconds.
public struct MoveReport: Sendable {
    /// From the start of `pause` until the successor goes on.
    public let pauseNanoseconds: Int64
    /// From the start of the new program until it has taken over.
    public let totalNanoseconds: Int64
}

/// Moves a running program's memory, descriptors and state to its successor process, on the same host, without a copy.
///
/// Exactly one of the two goes on, whichever dies: the owner is a word in shared memory, changed by compare-and-swap.
public enum LocalMigration {
    /// The argument by which a successor knows what it is; followed by the number of its descriptor.
    static let argument = "--local-migration-successor"

    /// Starts `program` as the successor and hands everything over to it.
    ///
    /// Returns when the successor has taken over: this process should now end, without touching what it gave away. Throws
    /// when it has not: then ``Migratable/resume()`` was called, everything is as before, and another attempt may follow.
    /// - Parameters:
    ///   - subject: What is handed over; it must not be freed before this returns.
    ///   - program: Path of the new program; the running one's is `/proc/self/exe`.
    ///   - arguments: Of the new program, without its name.
    ///   - limitMilliseconds: Longest pause; when it is over, everything is taken back.
    public static func handOver(
        _ subject: any Migratable, to program: String, arguments: [String] = [], limitMilliseconds: Int = 5_000
    ) throws -> MoveReport {
        let name = CommandLine.arguments.first ?? program
        let (socket, process) = try MigrationFailure.wrapping {
            try HandoverSource.start(path: program, name: name) { arguments + [argument, "\($0)"] }
        }
        var limits = HandoverSource.Limits()
        limits.takingOverMilliseconds = limitMilliseconds
        let adapter = SubjectAdapter(subject)
        let outcome = HandoverSource(socket: socket, destination: process.processDescriptor, limits: limits).run(
            adapter)
        switch outcome {
        case .moved(let times):
            return MoveReport(
                pauseNanoseconds: times.pauseNanoseconds, totalNanoseconds: times.resumed - times.begun)
        case .stayed(let error), .stayedPaused(let error):
            process.kill()
            _ = process.wait()
            throw MigrationFailure(error)
        }
    }

    /// What a predecessor hands over, or nil when this process was started as usual.
    ///
    /// When this returns, the memory is mapped, and the predecessor still runs: build everything else, touch nothing of
    /// what came, then call ``Arrival/complete(_:)``.
    public static func arrival() throws -> Arrival? {
        guard let position = CommandLine.arguments.lastIndex(of: argument),
            position + 1 < CommandLine.arguments.count, let number = CInt(CommandLine.arguments[position + 1]),
            number > 2
        else { return nil }
        let socket = OwnedDescriptor(adopting: number)
        try MigrationFailure.wrapping { try socket.setCloseOnExec(true) }
        return try Arrival(socket)
    }
}

/// The successor's side of a move.
public final class Arrival {
    private var destination: HandoverDestination
    /// The memory, by name.
    public let blocks: [String: MemoryBlock]
    private var owned: [String: OwnedDescriptor]

    init(_ socket: OwnedDescriptor) throws {
        destination = HandoverDestination(socket: socket, program: CommandLine.arguments.first ?? "successor")
        do {
            let description = try destination.receiveDescription()
            var blocks: [String: MemoryBlock] = [:]
            for block in description.blocks { blocks[block.name] = try MemoryBlock(adopting: block) }
            self.blocks = blocks
            owned = [:]
        } catch let error as HandoverError {
            throw MigrationFailure(destination.refuse(error))
        } catch {
            throw MigrationFailure(destination.refuse(HandoverError(.machine, "\(error)")))
        }
    }

    /// Takes over. `load` gets the predecessor's state and descriptors while both are paused; when it throws, the
    /// predecessor goes on. When this returns, everything is this process's, which goes on at once.
    /// - Parameter load: The descriptors are owned by the caller from here on.
    public func complete(_ load: (_ state: [UInt8], _ descriptors: [String: CInt]) throws -> Void) throws {
        do {
            _ = try destination.receiveControl()
            let state = try destination.receiveState()
            // Ours until the claim; closed if it never comes.
            var numbers: [String: CInt] = [:]
            for resource in state.resources {
                owned[resource.name] = resource.descriptor
                numbers[resource.name] = resource.descriptor.rawValue
            }
            do { try load(state.bytes, numbers) } catch { throw HandoverError(.machine, "\(error)") }
            try destination.claim()
            for (_, descriptor) in owned { descriptor.relinquish() }
            destination.announceRunning()
        } catch let error as HandoverError {
            throw MigrationFailure(destination.refuse(error))
        }
    }
}

/// The driver's view of a program.
private final class SubjectAdapter: HandoverSubject {
    private let subject: any Migratable
    private var state: [UInt8] = []
    private var hasPaused = false

    init(_ subject: any Migratable) { self.subject = subject }

    func describe() throws -> HandoverDescription {
        HandoverDescription(
            configuration: [],
            blocks: subject.blocks.map { .init(name: $0.name, byteCount: $0.byteCount, file: $0.file) }, resources: [])
    }

    func pause() throws {
        hasPaused = true
        state = try subject.pause()
    }

    func save(sendPart: (HandoverPart) throws(HandoverError) -> Void) throws -> HandoverState {
        let resources = try subject.descriptors.sorted { $0.key < $1.key }.map { name, number in
            NamedDescriptor(name, try OwnedDescriptor.duplicate(of: number))
        }
        return HandoverState(bytes: state, resources: resources)
    }

    func resume() throws {
        // The driver takes back more than the pause; the program only knows that.
        guard hasPaused else { return }
        hasPaused = false
        try subject.resume()
    }
    func release() {}
}
