import ArgumentParser
import Glibc
import MonitorClient
import QMPProtocol
import Supervisor

/// What subcommands that talk to a running guest share.
struct GuestArgument: ParsableArguments {
    @Argument(
        help: ArgumentHelp("The guest's name; 'sidestep list' shows them.", valueName: "name"),
        completion: .custom { _, _, _ in GuestArgument.names })
    var name: String

    /// For shells to complete.
    static var names: [String] { ((try? RunDirectory.list()) ?? []).map(\.name) }

    func find() throws(Refusal) -> RunDirectory.Entry { try RunDirectory.find(name) }

    /// A connection to the guest's own QMP socket.
    func connect() throws(Refusal) -> GuestConnection { try GuestConnection(try find()) }
}

/// QMP with failures as the tool's exit statuses.
struct GuestConnection {
    let entry: RunDirectory.Entry
    let qmp: QMPConnection

    init(_ entry: RunDirectory.Entry) throws(Refusal) {
        self.entry = entry
        do { qmp = try QMPConnection(path: entry.qmpSocketPath) } catch {
            throw Refusal(.commandFailed, "\(entry.name): \(error)")
        }
    }

    func run(_ command: String, _ arguments: JSONObject = [:], timeoutMilliseconds: Int64 = 30_000) throws(Refusal)
        -> JSONValue
    {
        do { return try qmp.run(command, arguments, timeoutMilliseconds: timeoutMilliseconds) } catch {
            throw Refusal(.commandFailed, "\(entry.name): \(error)")
        }
    }
}

enum OutputFormat: String, ExpressibleByArgument, CaseIterable { case text, json }

struct FormatOption: ParsableArguments {
    @Option(help: ArgumentHelp("text or json.", valueName: "form"))
    var format = OutputFormat.text

    /// Prints a result: JSON as it is, or as lines that the caller makes of it.
    func show(_ value: JSONValue, _ text: (JSONValue) -> String) {
        switch format {
        case .json: print(value.prettyJSON)
        case .text:
            let lines = text(value)
            if !lines.isEmpty { print(lines) }
        }
    }
}

extension FormatOption {
    /// Prints a result behind lines of progress: with JSON it is a line of its own, as they are.
    func showLast(_ value: JSONValue, _ text: (JSONValue) -> String) {
        if format == .json { print(value.json) } else { show(value, text) }
    }
}

/// Standard output now, not when the buffer is full.
func flushOutput() { _ = fflush(nil) }

/// Columns as wide as their widest entry; two spaces between.
func table(_ rows: [[String]]) -> String {
    let columns = rows.map(\.count).max() ?? 0
    let widths = (0..<columns).map { column in rows.map { $0.count > column ? $0[column].count : 0 }.max() ?? 0 }
    return rows.map { row in
        var line = ""
        for (column, cell) in row.enumerated() {
            line += cell
            if column < row.count - 1 {
                line += String(repeating: " ", count: widths[column] - cell.count + 2)
            }
        }
        return line
    }.joined(separator: "\n")
}
