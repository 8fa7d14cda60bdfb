import LinuxCalls

/// Waits until somebody listens there: a socket's name is there an instant before, and whoever connects then is refused.
///
/// Source of the columns: proc_pid_net(5); flag 0x10000 is `SO_ACCEPTCON`.
package func waitForSocket(_ path: String) throws {
    let deadline = ContinuousClock.now + .seconds(60)
    while true {
        let table = String(decoding: try FileNames.contents(of: "/proc/net/unix"), as: UTF8.self)
        let isHere = table.split(separator: "\n").contains { line in
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            return words.count == 8 && words[3] == "00010000" && words[7] == path
        }
        if isHere { return }
        guard ContinuousClock.now < deadline else {
            throw ExpectationError.failed(command: "listen at \(path)", end: "nobody does", output: "")
        }
        try HostTools.need("sleep", ["0.02"])
    }
}
