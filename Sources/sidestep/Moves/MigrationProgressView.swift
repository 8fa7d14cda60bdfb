import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

/// Shows a migration while it runs: a bar on a terminal, lines otherwise, JSON lines on request.
struct MigrationProgressView {
    var format: OutputFormat
    let isTerminal = isatty(2) == 1
    private var lastLine = ""

    init(format: OutputFormat) { self.format = format }

    /// Called now and then with `query-migrate`'s answer.
    mutating func show(_ answer: JSONValue) {
        if format == .json {
            print(answer.json)
            flushOutput()
            return
        }
        let line = Self.line(answer, width: isTerminal ? 12 : 0)
        guard line != lastLine else { return }
        lastLine = line
        if isTerminal {
            // A line that wrapped could not be written over.
            write("\r\u{1B}[K\(line.prefix(Self.terminalWidth - 1))")
        } else {
            write("\(line)\n")
        }
    }

    mutating func end() { if isTerminal && format == .text && !lastLine.isEmpty { write("\r\u{1B}[K") } }

    /// Columns of the terminal on standard error.
    private static var terminalWidth: Int {
        guard let terminal = try? OwnedDescriptor.duplicate(of: 2), let size = try? TerminalSize(of: terminal) else {
            return 80
        }
        return size.columns > 1 ? size.columns : 80
    }

    private func write(_ text: String) {
        let bytes = Array(text.utf8)
        _ = unsafe Glibc.write(2, bytes, bytes.count)
    }

    /// One line: share done, status, rate, what is left, round, dirty rate.
    static func line(_ answer: JSONValue, width: Int) -> String {
        let status = answer["status"]?.stringValue ?? "none"
        guard let ram = answer["ram"] else { return status }
        let total = ram["total"]?.doubleValue ?? 0
        let remaining = ram["remaining"]?.doubleValue ?? 0
        let share = total > 0 ? max(0, min(1, 1 - remaining / total)) : 0
        var parts: [String] = []
        if width > 0 {
            let filled = Int(share * Double(width))
            parts.append(
                "[\(String(repeating: "#", count: filled))\(String(repeating: ".", count: width - filled))]"
                    + " \(Int(share * 100))% \(status)")
        } else {
            parts.append("\(Int(share * 100))% \(status)")
        }
        let dirtied = (ram["dirty-pages-rate"]?.doubleValue ?? 0) * (ram["page-size"]?.doubleValue ?? 4096)
        parts.append("\(size((ram["mbps"]?.doubleValue ?? 0) * 125_000))/s")
        parts.append("\(size(remaining)) left")
        parts.append("round \(ram["dirty-sync-count"]?.json ?? "0")")
        parts.append("dirty \(size(dirtied))/s")
        return parts.joined(separator: "  ")
    }

    /// Bytes for people: three digits and a unit.
    static func size(_ bytes: Double) -> String {
        var value = bytes
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1000 || unit == "GiB" {
                let tenths = Int((value * 10).rounded())
                return value < 10 && unit != "B"
                    ? "\(tenths / 10).\(tenths % 10) \(unit)" : "\(Int(value.rounded())) \(unit)"
            }
            value /= 1024
        }
        return ""
    }

    /// What is said at the end: total, the pause and its phases, bytes, extra memory, channel, and why that channel.
    /// - Parameter channel: What to call a channel whose process does not say itself how RAM crossed.
    static func summary(_ answer: JSONValue, channel: String) -> String {
        func milliseconds(_ key: String) -> String? { answer[key].map { "\($0.json) ms" } }
        var rows: [[String]] = []
        if let total = milliseconds("total-time") { rows.append(["total", total]) }
        if let pause = milliseconds("downtime") {
            // In the order in which they happen, whatever order JSON has them in.
            let names = [
                "pause": "stop", "final-pages": "pages", "save": "save", "send": "send", "load": "load",
                "resume": "resume",
            ]
            let phases = ["pause", "final-pages", "save", "send", "load", "resume"].compactMap { phase in
                answer["x-phases"]?[phase].map { "\(names[phase] ?? phase) \(Upgrade.milliseconds($0))" }
            }
            let exact = answer["x-phases"]?["downtime"].map { Upgrade.milliseconds($0) } ?? pause
            rows.append(["pause", phases.isEmpty ? exact : "\(exact)  (\(phases.joined(separator: ", ")))"])
        }
        if let ram = answer["ram"] {
            let transferred = size(ram["transferred"]?.doubleValue ?? 0)
            let total = size(ram["total"]?.doubleValue ?? 0)
            rows.append([
                "bytes", "\(transferred) sent for \(total) of RAM, \(ram["duplicate"]?.json ?? "0") pages were zero",
            ])
            rows.append(["rounds", ram["dirty-sync-count"]?.json ?? "0"])
        }
        if let extra = answer["x-extra-memory"]?.doubleValue {
            rows.append(["extra memory", extra == 0 ? "none" : "at most \(size(extra)) existed twice"])
        }
        let kind = answer["x-channel-kind"]?.stringValue ?? channel
        let reason = answer["x-channel-reason"]?.stringValue.map { " (\($0))" } ?? ""
        rows.append(["channel", "\(kind), \(answer["x-channel"]?.stringValue ?? "?")\(reason)"])
        for notice in answer["x-notices"]?.arrayValue ?? [] { rows.append(["notice", notice.stringValue ?? ""]) }
        return table(rows.map { ["  " + $0[0], $0[1]] })
    }
}
