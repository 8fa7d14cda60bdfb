import DeviceModel
import Foundation
import LinuxCalls
import Synchronization
import Testing

@testable import HostBackends

@Suite("The escape at a terminal") struct EscapeParserTests {
    @Test("C-a x, C-a h and C-a C-a are ours; everything else is the guest's")
    func commands() {
        var parser = EscapeParser()
        let (input, commands) = parser.parse([0x61, 1, 0x68, 0x62, 1, 0x78, 1, 1, 1, 0x7a, 0x63])
        #expect(input == [0x61, 0x62, 1, 0x63] && commands == [.help, .quit])
    }

    @Test("an escape cut in two is remembered")
    func cut() {
        var parser = EscapeParser()
        #expect(parser.parse([1]).input.isEmpty && parser.isEscaped)
        #expect(parser.parse([0x58]).commands == [.quit] && !parser.isEscaped)
    }
}

@Suite("Consoles") struct ConsoleTests {
    let loop: TestLoop
    let scratch: Scratch

    init() throws {
        loop = try TestLoop()
        scratch = try Scratch()
    }

    private func write(_ text: String, to console: any ConsoleBackend) {
        #expect(console.write(Array(text.utf8)) == text.utf8.count)
    }

    // MARK: Terminal

    /// A terminal as somebody sits at it: what the console uses, and the other side.
    private func terminal() throws -> (slave: OwnedDescriptor, person: OwnedDescriptor) {
        let (master, slave, _) = try PseudoTerminal.open()
        return (slave, master)
    }

    @Test("a terminal is raw while the console has it and as before afterwards")
    func rawMode() throws {
        let (slave, person) = try terminal()
        let before = try TerminalModes(of: slave)
        let console = try TerminalConsole(input: slave, output: slave.duplicate(), loop: loop.loop) {}
        #expect(try TerminalModes(of: slave) == before.raw(keepsOutput: true))
        console.close()
        #expect(try TerminalModes(of: slave) == before)
        withExtendedLifetime(person) {}
    }

    @Test("keys reach the guest, output the person, and the escape us")
    func terminalWorks() throws {
        let (slave, person) = try terminal()
        let quits = HostSemaphore()
        let console = try TerminalConsole(input: slave, output: slave.duplicate(), loop: loop.loop) { quits.signal() }
        defer { console.close() }
        let typist = Typist(console)
        write("login: ", to: console)
        #expect(readText(7, from: person) == "login: ")
        try person.writeAll(Array("root\u{03}".utf8))
        #expect(typist.bytes.wait(for: 5))
        #expect(typist.text == "root\u{03}")
        try person.writeAll([1, UInt8(ascii: "h")])
        #expect(readText(20, from: person).contains("C-a x"))
        try person.writeAll([1, UInt8(ascii: "x")])
        #expect(quits.wait(timeoutNanoseconds: 20_000_000_000))
    }

    @Test("a person who reads nothing makes the guest wait, and then gets everything")
    func slowTerminal() throws {
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        let console = try TerminalConsole(
            input: OwnedDescriptor.open("/dev/null", flags: O_RDONLY), output: writeEnd, loop: loop.loop
        ) {}
        let typist = Typist(console)
        var sent: [UInt8] = []
        while true {
            let piece = (0..<1000).map { UInt8(truncatingIfNeeded: sent.count + $0) }
            let taken = console.write(piece)
            sent += piece[..<taken]
            if taken < piece.count { break }
        }
        #expect(sent.count >= 4096)
        let received = read(sent.count, from: readEnd)
        #expect(received == sent)
        #expect(typist.writable.wait(timeoutNanoseconds: 20_000_000_000))
        #expect(console.write([1, 2, 3]) == 3)
        let flags = fcntl(writeEnd.rawValue, F_GETFL)
        #expect(flags & O_NONBLOCK == 0, "the shared file stays as it was")
    }

    @Test("input, half an escape and the duty to restore the modes cross with a hand-over")
    func terminalHandover() throws {
        let (slave, person) = try terminal()
        let before = try TerminalModes(of: slave)
        let source = try TerminalConsole(input: slave, output: slave.duplicate(), loop: loop.loop) {}
        let first = Typist(source)
        first.bytes.setRoom(2)
        try person.writeAll(Array("abcd".utf8) + [1])
        #expect(first.bytes.waitForRefusal())
        loop.loop.barrier()
        source.quiesce()
        let handover = try cross(source.handOver())
        try person.writeAll(Array("hef".utf8))
        let destination = try TerminalConsole(adopting: handover, loop: loop.loop) {}
        let second = Typist(destination)
        loop.loop.barrier()
        #expect(second.text.isEmpty)
        source.relinquish()
        #expect(try TerminalModes(of: slave) != before)
        destination.resume()
        #expect(second.bytes.wait(for: 4))
        #expect(first.text + second.text == "abcdef")
        #expect(readText(20, from: person).contains("C-a x"))
        destination.close()
        #expect(try TerminalModes(of: slave) == before)
    }

    @Test(
        "the modes are put back when the process exits, is told to end, or crashes",
        arguments: [0, SIGTERM, SIGINT, SIGHUP, SIGABRT, SIGSEGV])
    func restoredAtDeath(signal: Int32) async throws {
        let (person, slave, path) = try PseudoTerminal.open()
        let before = try TerminalModes(of: slave)
        await #expect(processExitsWith: signal == 0 ? .success : .signal(signal)) { [path = path as String, signal] in
            let terminal = try OwnedDescriptor.open(path, flags: O_RDWR | O_NOCTTY)
            let modes = try TerminalModes(of: terminal)
            try TerminalGuard.watch(terminal, modes: modes)
            try modes.raw().set(on: terminal)
            guard try TerminalModes(of: terminal) != modes else { _exit(99) }
            if signal == 0 { exit(0) }
            if signal == SIGSEGV { UnsafeMutablePointer<UInt8>(bitPattern: 8)!.pointee = 1 }
            kill(getpid(), signal)
            while true { pause() }
        }
        #expect(try TerminalModes(of: slave) == before)
        withExtendedLifetime(person) {}
    }

    // MARK: Socket

    private func connect(_ console: SocketConsole) throws -> OwnedDescriptor {
        try StreamSocket.connect(to: .unix(path: console.path))
    }

    /// Connects and waits until the console knows the client: it echoes what the guest prints.
    private func attach(_ console: SocketConsole, _ typist: Typist) throws -> OwnedDescriptor {
        let client = try connect(console)
        let count = typist.bytes.pieces.count
        try client.writeAll([UInt8(ascii: "!")])
        #expect(typist.bytes.wait(for: count + 1))
        return client
    }

    @Test("output goes to all clients, input comes from all")
    func socketClients() throws {
        let console = try SocketConsole(path: scratch.path + "/console", loop: loop.loop)
        defer { console.close() }
        let typist = Typist(console)
        write("nobody hears this", to: console)
        let clients = [try attach(console, typist), try attach(console, typist)]
        write("hello", to: console)
        for client in clients { #expect(readText(5, from: client) == "hello") }
        try clients[1].writeAll(Array("b".utf8))
        #expect(typist.bytes.wait(for: 3))
        #expect(typist.text == "!!b")
    }

    @Test("a client that does not read holds nobody up, and is told what it missed")
    func silentClient() throws {
        let console = try SocketConsole(path: scratch.path + "/console", loop: loop.loop)
        defer { console.close() }
        let typist = Typist(console)
        let silent = try attach(console, typist)
        let reading = try attach(console, typist)
        let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 8192)
        var total = 0
        for _ in 0..<200 {
            #expect(console.write(piece) == piece.count)
            total += piece.count
            #expect(read(piece.count, from: reading).count == piece.count)
        }
        // The silent one reads at last: what was kept, then how much was not.
        var text = ""
        while !text.hasSuffix("not shown]\r\n") {
            let more = readText(1, from: silent)
            if more.isEmpty { break }
            text += more
        }
        let shown = text.prefix { $0 == "x" }.count
        #expect(text.dropFirst(shown) == "\r\n[\(total - shown) bytes were not shown]\r\n")
        write("again", to: console)
        #expect(readText(5, from: silent) == "again")
    }

    @Test("a client that goes away is forgotten; input nobody takes waits")
    func clientGone() throws {
        let console = try SocketConsole(path: scratch.path + "/console", loop: loop.loop)
        defer { console.close() }
        let typist = Typist(console)
        typist.bytes.setRoom(1)
        do {
            let client = try attach(console, typist)
            try client.writeAll(Array("abc".utf8))
            #expect(typist.bytes.waitForRefusal())
        }
        typist.bytes.setRoom(100)
        console.inputIsWanted()
        #expect(typist.bytes.wait(for: 4))
        #expect(typist.text == "!abc")
        write("into the void", to: console)
    }

    @Test("a stale socket file is replaced, a living listener is not")
    func staleSocket() throws {
        let path = scratch.path + "/console"
        do { _ = try StreamSocket.listen(at: .unix(path: path)) }
        let console = try SocketConsole(path: path, loop: loop.loop)
        let error = #expect(throws: BackendError.self) { _ = try SocketConsole(path: path, loop: loop.loop) }
        #expect("\(error!)".contains("another process"))
        console.close()
        #expect(access(path, F_OK) != 0)
    }

    @Test("too many clients are told so")
    func tooMany() throws {
        let console = try SocketConsole(path: scratch.path + "/console", loop: loop.loop)
        defer { console.close() }
        let typist = Typist(console)
        var clients: [OwnedDescriptor] = []
        for _ in 0..<SocketConsole.clientCountMaximum { clients.append(try attach(console, typist)) }
        #expect(readText(7, from: try connect(console)) == "no room")
    }

    @Test("listener, clients, backlogs and unread input cross with a hand-over")
    func socketHandover() throws {
        let source = try SocketConsole(path: scratch.path + "/console", loop: loop.loop)
        let first = Typist(source)
        let silent = try attach(source, first)
        let reading = try attach(source, first)
        var sent: [UInt8] = []
        // More than the socket takes at once, less than is kept.
        while sent.count < 300_000 {
            let piece = (0..<10_000).map { UInt8(truncatingIfNeeded: (sent.count + $0) / 7) }
            #expect(source.write(piece) == piece.count)
            sent += piece
            #expect(read(piece.count, from: reading) == piece)
        }
        first.bytes.setRoom(0)
        try reading.writeAll(Array("typed".utf8))
        #expect(first.bytes.waitForRefusal())
        source.quiesce()
        let handover = try cross(source.handOver())
        let destination = try SocketConsole(adopting: handover, loop: loop.loop)
        defer { destination.close() }
        let second = Typist(destination)
        loop.loop.barrier()
        #expect(second.text.isEmpty)
        let late = try StreamSocket.connect(to: .unix(path: source.path))  // connects in the middle; is served later
        source.relinquish()
        destination.resume()
        #expect(second.bytes.wait(for: 5))
        #expect(second.text == "typed")
        #expect(read(sent.count, from: silent) == sent)
        try late.writeAll(Array("?".utf8))
        #expect(second.bytes.wait(for: 6))
        write("after", to: destination)
        for client in [silent, reading, late] { #expect(readText(5, from: client) == "after") }
    }

    // MARK: Pseudo-terminal, file

    @Test("a pseudo-terminal drops output while nobody is there and works for whoever is")
    func pseudoTerminal() throws {
        let console = try PseudoTerminalConsole(loop: loop.loop)
        let typist = Typist(console)
        for _ in 0..<100 { write(String(repeating: "early ", count: 100), to: console) }
        let person = try OwnedDescriptor.open(console.path, flags: O_RDWR | O_NOCTTY)
        try person.writeAll(Array("hi".utf8))
        #expect(typist.bytes.wait(for: 2))
        #expect(typist.text == "hi")
        // The loop has seen the opening when it has seen the keys, or will at the next turn.
        loop.loop.barrier()
        write("prompt", to: console)
        #expect(readText(6, from: person) == "prompt")
    }

    @Test("a pseudo-terminal crosses with its user")
    func pseudoTerminalHandover() throws {
        let source = try PseudoTerminalConsole(loop: loop.loop)
        let first = Typist(source)
        let person = try OwnedDescriptor.open(source.path, flags: O_RDWR | O_NOCTTY)
        first.bytes.setRoom(1)
        try person.writeAll(Array("abc".utf8))
        #expect(first.bytes.waitForRefusal())
        source.quiesce()
        let destination = try PseudoTerminalConsole(adopting: try cross(source.handOver()), loop: loop.loop)
        let second = Typist(destination)
        source.relinquish()
        destination.resume()
        #expect(second.bytes.wait(for: 2))
        #expect(first.text + second.text == "abc")
        loop.loop.barrier()
        write("there", to: destination)
        #expect(readText(5, from: person) == "there")
        #expect(destination.path == source.path)
    }

    @Test("a guest that stands still is left by C-a x; what is typed for it waits, and not without end")
    func quietTerminal() throws {
        let (slave, person) = try terminal()
        let quit = HostSemaphore()
        let console = try TerminalConsole(input: slave, output: slave.duplicate(), loop: loop.loop) { quit.signal() }
        defer { console.close() }
        let typist = Typist(console)
        console.quiesce()
        try person.writeAll(Array("ab".utf8) + [1] + Array("x".utf8))
        #expect(quit.wait(timeoutNanoseconds: 20_000_000_000))
        loop.loop.barrier()
        #expect(typist.text.isEmpty)
        console.resume()
        #expect(typist.bytes.wait(for: 2))
        #expect(typist.text == "ab")
    }

    @Test("a file gets everything, also across a hand-over")
    func file() throws {
        let path = scratch.path + "/log"
        let source = try FileConsole(path: path)
        write("one ", to: source)
        let destination = try FileConsole(adopting: try cross(source.handOver()))
        write("two", to: destination)
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "one two")
    }
}
