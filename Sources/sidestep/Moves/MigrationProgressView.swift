import Glibc
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
        let line = Self.line(answer, width: isTerminal ? 20 : 0)
        guard line != lastLine else { return }
        lastLine = line
        if isTerminal {
            write("\r\u{1B}[K\(line)")
        } else {
            write("\(line)\n")
        }
    }

    mutating func end() { if isTerminal && format == .text && !lastLine.isEmpty { write("\r\u{1B}[K") } }

    private func write(_ text: String) {
        let bytes = Array(text.utf8)
        _ = unsafe Glibc.write(2, bytes, bytes.count)
    }

    /// One line: status, share done, rate, what is left, round, dirty rate.
    static func line(_ answer: JSONValue, width: Int) -> String {
        let status = answer["status"]?.stringValue ?? "none"
        guard let ram = answer["ram"] else { return status }
        let total = ram["total"]?.doubleValue ?? 0
        let remaining = ram["remaining"]?.doubleValue ?? 0
        let share = total > 0 ? max(0, min(1, 1 - remaining / total)) : 0
        var parts: [String] = []
        if width > 0 {
            let filled = Int(share * Double(width))
            parts.append("[\(String(repeating: "#", count: filled))\(String(repeating: ".", count: width - filled))]")
        }
        parts.append("\(Int(share * 100))%")
        parts.append(status)
        parts.append("\(size((ram["mbps"]?.doubleValue ?? 0) * 125_000))/s")
        parts.append("\(size(remaining)) left")
        parts.append("round \(ram["dirty-sync-count"]?.json ?? "0")")
        parts.append("\(ram["dirty-pages-rate"]?.json ?? "0") pages/s dirtied")
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

    /// What is said at the end.
    static func summary(_ answer: JSONValue, channel: String) -> String {
        func milliseconds(_ key: String) -> String? { answer[key].map { "\($0.json) ms" } }
        var rows: [[String]] = []
        if let total = milliseconds("total-time") { rows.append(["total", total]) }
        if let pause = milliseconds("downtime") {
            let phases = (answer["x-phases"]?.objectValue?.members ?? []).filter { $0.key != "downtime" }.map {
                "\($0.key) \($0.value.json) us"
            }
            rows.append(["pause", phases.isEmpty ? pause : "\(pause)  (\(phases.joined(separator: ", ")))"])
        }
        if let ram = answer["ram"] {
            let transferred = size(ram["transferred"]?.doubleValue ?? 0)
            let total = size(ram["total"]?.doubleValue ?? 0)
            rows.append([
                "bytes", "\(transferred) sent for \(total) of RAM, \(ram["duplicate"]?.json ?? "0") pages were zero",
            ])
            rows.append(["rounds", ram["dirty-sync-count"]?.json ?? "0"])
        }
        rows.append(["channel", "\(channel): \(answer["x-channel"]?.stringValue ?? "?")"])
        for notice in answer["x-notices"]?.arrayValue ?? [] { rows.append(["notice", notice.stringValue ?? ""]) }
        return table(rows.map { ["  " + $0[0], $0[1]] })
    }
}
