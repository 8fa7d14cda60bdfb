import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

struct Console: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "console", abstract: "Attach this terminal to a guest's console.",
        discussion:
            "The guest must have been started with --console unix. Ctrl-A D detaches, Ctrl-A Ctrl-A sends a Ctrl-A.")

    @OptionGroup var guest: GuestArgument

    func run() throws {
        let facts = try guest.connect().run("x-sidestep-inspect")
        let console = facts["console"]?.stringValue ?? ""
        guard console.hasPrefix("unix:") else {
            throw Refusal("\(guest.name): its console is '\(console)', which takes no clients")
        }
        let socket: OwnedDescriptor
        do { socket = try StreamSocket.connect(to: .unix(path: String(console.dropFirst(5)))) } catch {
            throw Refusal(.commandFailed, "\(guest.name): cannot reach the console: \(error)")
        }
        let terminal = try OwnedDescriptor.duplicate(of: 0)
        let modes = try? TerminalModes(of: terminal)  // nil: not a terminal
        if let modes {
            try TerminalGuard.watch(terminal, modes: modes)
            try modes.raw().set(on: terminal)
        }
        defer { if modes != nil { TerminalGuard.restore() } }
        if modes != nil { Diagnostics.write("attached to \(guest.name); Ctrl-A D detaches") }
        try relay(socket, isTerminal: modes != nil)
    }

    /// Bytes both ways until either side has had enough.
    private func relay(_ socket: OwnedDescriptor, isTerminal: Bool) throws {
        let input = try OwnedDescriptor.duplicate(of: 0)
        let output = try OwnedDescriptor.duplicate(of: 1)
        var afterEscape = false
        var inputEnded = false
        while true {
            var entries = [
                pollfd(fd: socket.rawValue, events: Int16(POLLIN), revents: 0),
                pollfd(fd: inputEnded ? -1 : input.rawValue, events: Int16(POLLIN), revents: 0),
            ]
            _ = try retrying("poll") { unsafe poll(&entries, 2, -1) }
            if entries[0].revents != 0 {
                let bytes = try read(socket)
                if bytes.isEmpty { return }
                try output.writeAll(bytes)
            }
            if entries[1].revents != 0 {
                let bytes = try read(input)
                if bytes.isEmpty { inputEnded = true }
                var sent: [UInt8] = []
                for byte in bytes {
                    if isTerminal, afterEscape {
                        afterEscape = false
                        if byte == UInt8(ascii: "d") || byte == UInt8(ascii: "D") { return }
                        if byte != 0x01 { sent.append(0x01) }
                        sent.append(byte)
                    } else if isTerminal, byte == 0x01 {
                        afterEscape = true
                    } else {
                        sent.append(byte)
                    }
                }
                if !sent.isEmpty { try StreamSocket.sendAll(sent, to: socket) }
            }
        }
    }

    private func read(_ descriptor: OwnedDescriptor) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = unsafe bytes.withUnsafeMutableBytes { buffer -> Int in
            do throws(SystemCallError) { return try unsafe descriptor.read(into: buffer) } catch { return 0 }
        }
        return Array(bytes[..<count])
    }
}
