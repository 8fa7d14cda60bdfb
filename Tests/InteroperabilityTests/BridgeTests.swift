import ProcessTestKit
import Testing

@Suite(
    "sidestep bridge", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
struct BridgeTests {
    private func waitForSocket(_ path: String) throws {
        try HostTools.need("sh", ["-c", "until [ -S \(path) ]; do sleep 0.02; done"], seconds: 30)
    }

    @Test("a live guest goes from 7.2 to 10.0 and back, five rounds") func rounds() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        var kind = StockKind(release: "7.2")
        var stock = try StockMachine(kind, in: run, disk: disk.path, name: "stock0")
        try stock.program.wait(for: "~ # ", seconds: 120, partial: true)
        try stock.program.type("(while :; do :; done) & x=0; echo prepared $((1 + 1))\n")
        try stock.program.wait(for: "prepared 2", seconds: 60)
        for hop in 1...10 {
            kind.release = kind.release == "7.2" ? "10.0" : "7.2"
            let from = run.directory.file("from\(hop)")
            let to = run.directory.file("to\(hop)")
            let next = try StockMachine(
                kind, in: run, disk: disk.path, name: "stock\(hop)", incoming: "unix:\(to)")
            try waitForSocket(to)
            let bridge = try RunningProgram(
                Checkout.tool,
                ["bridge", "--from", "unix:\(from)", "--to", "unix:\(to)", "--target", kind.layout], name: "bridge")
            try waitForSocket(from)
            let answer = try stock.migrate(to: "unix:\(from)", returnPath: true)
            #expect(answer.contains("completed"), "hop \(hop): \(answer)\n\(next.program.errors.tail)")
            #expect(try bridge.waitForEnd(seconds: 30) == .exited(status: 0), "\(bridge.errors.tail)")
            try next.program.type("x=$((x + 1)); echo hop-$x end\n")
            try next.program.wait(for: "hop-\(hop) end", seconds: 30)
            try stock.quit()
            stock = next
        }
    }
}
