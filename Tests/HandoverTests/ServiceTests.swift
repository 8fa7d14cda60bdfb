import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// A service manager's ear: what is sent to `NOTIFY_SOCKET`, with who sent it.
private final class NotifySocket {
    private let socket: OwnedDescriptor
    let path: String

    init(_ path: String) throws {
        self.path = path
        socket = OwnedDescriptor(
            adopting: Glibc.socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix($0.count - 1)) }
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket.rawValue, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(status == 0, "bind: \(errno)")
    }

    /// The next message, as lines. Of a barrier its descriptor is closed, as a manager does when it has read so far.
    func next(_ hint: @autoclosure () -> String = "") throws -> [String] {
        while true {
            let lines = try read(hint())
            if lines != ["BARRIER=1"] { return lines }
        }
    }

    private func read(_ hint: String) throws -> [String] {
        let ready = try socket.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 30_000)
        try #require(ready != 0, "nothing was said; \(hint)")
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = recv(socket.rawValue, &buffer, buffer.count, 0)
        return String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self).split(separator: "\n").map(String.init)
    }
}

@Suite(
    "As a service", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct ServiceTests {
    private func process(_ run: MonitorRun) throws -> Int32 {
        let text = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
        return try #require(Int32(text.trimmingCharacters(in: .whitespacesAndNewlines)))
    }

    @Test("whoever listens for it is told who the main process is, before the old one ends")
    func standIn() throws {
        let run = try MonitorRun()
        let ear = try NotifySocket(run.directory.file("notify"))
        let guest = try RunningProgram(
            Checkout.tool,
            ["run", "--name", "guest", "--console", "stdio", "--firmware", Heartbeat.elf, "--memory", "64M"],
            name: "guest", environment: run.environment.merging(["NOTIFY_SOCKET": ear.path]) { $1 })
        let first = try ear.next("\(guest.errors.tail)")
        #expect(first.contains("READY=1"))
        #expect(first.contains("MAINPID=\(guest.process.processIdentifier)"), "no keeper stands between: \(first)")
        var main = guest.process.processIdentifier
        for channel in ["memfd", "page-flip", "socket"] {
            let report = try run.upgrade("guest", ["--channel", channel])
            let told = try ear.next()
            #expect(told.contains("MAINPID=\(report.process)"), "\(told)")
            #expect(try process(run) == Int32(report.process) && Int32(report.process) != main)
            main = Int32(report.process)
        }
        try guest.type("q")
        try HostTools.need("sh", ["-c", "while [ -e /proc/\(main) ]; do sleep 0.05; done"], seconds: 30)
    }

    /// Arguments: the tool, the guest.
    private static let script = #"""
        tool=$1; elf=$2
        systemd-run --user --unit=$unit -p Type=notify -p NotifyAccess=all -p StandardError="file:$directory/errors" \
            -E XDG_RUNTIME_DIR="$directory" \
            "$tool" run --name guest --firmware "$elf" --memory 64M --console "file:$directory/console" || { cat "$directory/errors"; exit 1; }
        runner() { cat "$directory/sidestep/guest/pid"; }
        main() { systemctl --user show $unit -p MainPID --value; }
        show() { systemctl --user show $unit -p ActiveState -p SubState -p MainPID -p NRestarts | tr '\n' ' '; }
        echo "STATE 0 $(show) runner=$(runner)"
        for round in 1 2 3 4 5; do
            XDG_RUNTIME_DIR="$directory" "$tool" upgrade guest >/dev/null || echo FAILED
            await eval '[ "$(main)" = "$(runner)" ]'
            echo "STATE $round $(show) runner=$(runner)"
        done
        before=$(runner)
        systemctl --user kill --kill-whom=main --signal=USR2 $unit
        await eval '[ "$(runner)" != $before ] && [ "$(main)" = "$(runner)" ]'
        echo "STATE 6 $(show) runner=$(runner)"
        systemctl --user stop $unit
        echo "END $(systemctl --user show $unit -p ActiveState -p Result -p ExecMainCode -p ExecMainStatus | tr '\n' ' ')"
        cat "$directory/errors"
        """#

    @Test(
        "a unit of a real service manager stays up over upgrades, with the right main process",
        .enabled(if: UserServiceManager.requirement.isMet, "\(UserServiceManager.requirement); the stand-in was heard"))
    func unit() throws {
        let run = try MonitorRun()
        let result = try UserServiceManager.run(
            Self.script, in: run.directory.path, [Checkout.tool, Heartbeat.elf])
        defer { if let last = try? process(run) { kill(last, SIGKILL) } }
        let states = UserServiceManager.states(in: result.output)
        #expect(states.count == 7, "\(result)")
        var mains: Set<String> = []
        for state in states {
            #expect(state["ActiveState"] == "active" && state["SubState"] == "running", "\(state)")
            #expect(state["MainPID"] != nil && state["MainPID"] == state["runner"], "\(state)")
            #expect(state["NRestarts"] == "0")
            mains.insert(state["MainPID"] ?? "")
        }
        #expect(mains.count == 7, "each upgrade is a new main process: \(states)")
        #expect(
            result.output.contains("ActiveState=inactive") && result.output.contains("Result=success"),
            "\(result.output)")
        let seen = ticks(in: try String(contentsOfFile: run.directory.file("console"), encoding: .utf8))
        #expect(seen.count > 3 && seen == Array(0..<seen.count))
    }
}
