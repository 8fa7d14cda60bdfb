import DeviceModel
import Foundation
import HostBackends
import LinuxCalls
import Synchronization

/// A directory that goes away with its test.
final class Scratch: Sendable {
    let path: String

    init() throws {
        let url = FileManager.default.temporaryDirectory.appending(path: "sidestep-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        path = url.path
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String, byteCount: Int) throws -> String {
        let path = "\(path)/\(name)"
        let file = try OwnedDescriptor.open(path, flags: O_RDWR | O_CREAT)
        guard ftruncate(file.rawValue, byteCount) == 0 else { throw SystemCallError.last("ftruncate") }
        return path
    }
}

/// Collects what a backend delivers, as a device would, with room that can be closed.
final class Collector<Piece: Sendable>: Sendable {
    private let state: Mutex<(pieces: [Piece], room: Int)>
    private let arrived = HostSemaphore()
    private let refusedSignal = HostSemaphore()

    init(room: Int = .max) { state = Mutex(([], room)) }

    func take(_ piece: Piece) -> Bool {
        let isTaken = state.withLock { state in
            guard state.room > 0 else { return false }
            state.room -= 1
            state.pieces.append(piece)
            return true
        }
        (isTaken ? arrived : refusedSignal).signal()
        return isTaken
    }

    var pieces: [Piece] { state.withLock { $0.pieces } }
    func setRoom(_ room: Int) { state.withLock { $0.room = room } }

    /// Waits until there are at least `count`; false after 20 s.
    func wait(for count: Int) -> Bool {
        while pieces.count < count { guard arrived.wait(timeoutNanoseconds: 20_000_000_000) else { return false } }
        return true
    }

    func waitForRefusal() -> Bool { refusedSignal.wait(timeoutNanoseconds: 20_000_000_000) }
}

extension NetworkBackend {
    /// Connects a collector of frames, and answers a semaphore that is signalled when there is room to send.
    func connect(_ collector: Collector<[UInt8]>) -> HostSemaphore {
        let writable = HostSemaphore()
        connect(receive: { collector.take(Array($0)) }, writable: { writable.signal() })
        return writable
    }

    func send(_ bytes: [UInt8]) -> Bool { bytes.withUnsafeBytes { send($0) } }
}

/// The device's side of a console: takes bytes one by one as long as there is room.
final class Typist: Sendable {
    let bytes = Collector<UInt8>()
    let writable = HostSemaphore()

    init(_ console: any ConsoleBackend) {
        let bytes = bytes
        let writable = writable
        console.connect(
            input: { input in
                var taken = 0
                for byte in input {
                    guard bytes.take(byte) else { break }
                    taken += 1
                }
                return taken
            }, writable: { writable.signal() })
        console.inputIsWanted()
    }

    var text: String { String(decoding: bytes.pieces, as: UTF8.self) }
}

/// Reads from a descriptor until `count` bytes are there; fewer when nothing comes for 20 s.
func read(_ count: Int, from descriptor: OwnedDescriptor) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
        guard let events = try? descriptor.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 20_000), events != 0
        else { break }
        var piece = [UInt8](repeating: 0, count: count - bytes.count)
        let got = (try? piece.withUnsafeMutableBytes { try descriptor.read(into: $0) }) ?? 0
        if got == 0 { break }
        bytes += piece[..<got]
    }
    return bytes
}

func readText(_ count: Int, from descriptor: OwnedDescriptor) -> String {
    String(decoding: read(count, from: descriptor), as: UTF8.self)
}

/// Runs a program to its end.
@discardableResult func run(_ path: String, _ arguments: String...) throws -> ProcessEnd? {
    try ChildProcess(path: path, arguments: arguments).wait(timeoutMilliseconds: 30_000)
}

/// A child that is ended with its test.
final class Companion: Sendable {
    let child: ChildProcess
    init(_ path: String, _ arguments: [String], descriptors: [CInt: OwnedDescriptor] = [:]) throws {
        child = try ChildProcess(path: path, arguments: arguments, descriptors: descriptors)
    }
    deinit {
        child.kill()
        _ = child.wait(timeoutMilliseconds: 10_000)
    }
}

/// An event loop that ends with its test.
final class TestLoop: Sendable {
    let loop: EventLoop
    init() throws { loop = try EventLoop(name: "backends") }
    deinit { loop.stop() }
}

/// What crossing to another process does to a hand-over: descriptors become others for the same open files.
func cross(_ handover: BackendHandover) throws -> BackendHandover {
    var copy = handover
    for index in copy.descriptors.indices {
        copy.descriptors[index].descriptor = try copy.descriptors[index].descriptor.duplicate()
    }
    return copy
}
