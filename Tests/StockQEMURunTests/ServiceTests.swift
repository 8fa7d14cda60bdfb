import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// A unit of a real service manager whose main process is a stock QEMU that is replaced.
@Suite(
    "Stock QEMU as a service", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"),
    .enabled(if: UserServiceManager.requirement.isMet, "\(UserServiceManager.requirement)"))
struct ServiceTests {
    /// Arguments: the tool, the program to move to, QEMU with its arguments.
    private static let script = #"""
        tool=$1; binary=$2; shift 2
        # What the manager knows of the end, which it forgets with the unit.
        systemd-run --user --unit=$unit -p NotifyAccess=all -p StandardError="file:$directory/errors" \
            -p ExecStopPost="/bin/sh -c 'echo \$\$SERVICE_RESULT \$\$EXIT_CODE \$\$EXIT_STATUS >$directory/end'" "$@" \
            || { cat "$directory/errors"; exit 1; }
        await [ -S "$directory/q.sock" ] || { cat "$directory/errors"; exit 1; }
        await [ -s "$directory/pid" ]
        runner() { cat "$directory/pid"; }
        main() { systemctl --user show $unit -p MainPID --value; }
        show() { systemctl --user show $unit -p ActiveState -p SubState -p MainPID -p NRestarts | tr '\n' ' '; }
        echo "STATE 0 $(show) runner=$(runner)"
        for round in 1 2; do
            # Whoever asks for it is a process that the manager adopts what is left of, as the first process does on a whole machine.
            systemd-run --user --wait --quiet -p StandardError="file:$directory/upgrade.$round" \
                "$tool" qemu upgrade --qmp "$directory/q.sock" --binary "$binary" || { echo FAILED; cat "$directory/upgrade.$round"; }
            await eval '[ "$(main)" = "$(runner)" ]'
            echo "STATE $round $(show) runner=$(runner)"
        done
        systemctl --user stop $unit
        echo "END $(cat "$directory/end")"
        cat "$directory/errors"
        """#

    @Test("its unit stays up over upgrades with the right main process, and is stopped by SIGTERM alone")
    func unit() throws {
        let directory = try TemporaryDirectory()
        let program = StockQEMUBuild.pc("10.0")
        let result = try UserServiceManager.run(
            Self.script, in: directory.path,
            [
                Checkout.tool, program, program, "-display", "none", "-nodefaults", "-qmp",
                "unix:\(directory.file("q.sock")),server=on,wait=off", "-pidfile", directory.file("pid"),
            ] + FirmwarePC.arguments())
        defer {
            if let text = try? FileNames.contents(of: directory.file("pid")),
                let process = CInt(String(decoding: text, as: UTF8.self).filter { !$0.isWhitespace })
            {
                kill(process, SIGKILL)
            }
        }
        let states = UserServiceManager.states(in: result.output)
        #expect(states.count == 3, "\(result)")
        var mains: Set<String> = []
        for state in states {
            #expect(state["ActiveState"] == "active" && state["SubState"] == "running", "\(state)")
            #expect(state["MainPID"] != nil && state["MainPID"] == state["runner"], "\(state)")
            #expect(state["NRestarts"] == "0")
            mains.insert(state["MainPID"] ?? "")
        }
        #expect(mains.count == 3, "each upgrade is a new main process: \(states)")
        #expect(!result.output.contains("FAILED"), "\(result)")
        // By SIGKILL it would be another; of a process that is not its own the manager does not know it.
        #expect(result.output.contains("END success exited 0"), "\(result)")
    }
}
