import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

/// `sidestep manual`: the man pages, made of what the argument parser knows.
struct Manual: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "manual", abstract: "Write the man pages: sidestep.1, and one for each subcommand.",
        discussion: "For example: sidestep manual /usr/local/share/man/man1")

    @Argument(help: ArgumentHelp("Where they go.", valueName: "directory"), completion: .directory)
    var directory: String

    func run() throws {
        let tool: JSONValue
        do {
            tool = try JSONValue.parse(Array(Sidestep._dumpHelp().utf8), limits: Self.limits)["command"] ?? .null
        } catch {
            throw Refusal(.hostFailure, "the argument parser's description of itself cannot be read: \(error)")
        }
        if unsafe mkdir(directory, 0o755) != 0, errno != EEXIST {
            throw Refusal("cannot make the directory \(directory): \(errorText(errno))")
        }
        let pages = ManualPage.pages(of: tool)
        for page in pages {
            let path = "\(directory)/\(page.name).1"
            do {
                let file = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC, mode: 0o644)
                try file.writeAll(Array(page.text.utf8))
            } catch { throw Refusal("cannot write \(path): \(error)") }
        }
        print(pages.map { "\($0.name).1" }.joined(separator: "\n"))
    }

    /// The description is our own.
    private static var limits: JSONLimits {
        var limits = JSONLimits()
        limits.byteCount = 16 << 20
        limits.tokens = 1 << 20
        return limits
    }
}

/// A page in the language of mdoc(7).
struct ManualPage {
    /// Words joined by hyphens, as pages of subcommands are called.
    var name: String
    var text: String

    static func pages(of tool: JSONValue) -> [ManualPage] { pages(of: tool, path: [], all: tool) }

    private static func pages(of command: JSONValue, path: [String], all tool: JSONValue) -> [ManualPage] {
        let words = path + [command["commandName"]?.stringValue ?? ""]
        let subcommands = (command["subcommands"]?.arrayValue ?? []).filter {
            $0["commandName"] != "help" && $0["shouldDisplay"]?.boolValue != false
        }
        var writer = MdocWriter()
        writer.write(command, words: words, subcommands: subcommands)
        return [ManualPage(name: words.joined(separator: "-"), text: writer.text)]
            + subcommands.flatMap { pages(of: $0, path: words, all: tool) }
    }
}

private struct MdocWriter {
    private(set) var text = ""

    mutating func write(_ command: JSONValue, words: [String], subcommands: [JSONValue]) {
        let title = words.joined(separator: "-")
        macro("Dd", Self.today)
        macro("Dt", "\(title.uppercased()) 1")
        macro("Os")
        macro("Sh", "NAME")
        macro("Nm", title)
        macro("Nd", Self.escaped(Self.lowered(command["abstract"]?.stringValue ?? "")))
        macro("Sh", "SYNOPSIS")
        let arguments = (command["arguments"]?.arrayValue ?? []).filter { $0["shouldDisplay"]?.boolValue != false }
        macro("Nm", words.joined(separator: " "))
        if subcommands.isEmpty {
            for argument in arguments { synopsis(argument) }
        } else {
            macro("Ar", "subcommand ...")
        }
        macro("Sh", "DESCRIPTION")
        paragraph(command["abstract"]?.stringValue ?? "")
        for part in (command["discussion"]?.stringValue ?? "").split(separator: "\n") {
            macro("Pp")
            paragraph(String(part))
        }
        if !subcommands.isEmpty {
            list("SUBCOMMANDS", subcommands) { writer, subcommand in
                writer.macro("It", "Ic \(subcommand["commandName"]?.stringValue ?? "")")
                writer.paragraph(subcommand["abstract"]?.stringValue ?? "")
            }
        }
        let positional = arguments.filter { $0["kind"] == "positional" }
        let options = arguments.filter { $0["kind"] != "positional" }
        if !positional.isEmpty { list("ARGUMENTS", positional) { $0.item($1) } }
        if !options.isEmpty { list("OPTIONS", options) { $0.item($1) } }
        if words.count == 1 {
            general()
        } else {
            macro("Sh", "EXIT STATUS")
            paragraph("See")
            macro("Xr", "sidestep 1 .")
        }
        macro("Sh", "SEE ALSO")
        let others =
            words.count == 1
            ? subcommands.map { "\(title)-\($0["commandName"]?.stringValue ?? "")" }.sorted()
            : [words.dropLast().joined(separator: "-")]
        for (index, other) in others.enumerated() {
            macro("Xr", "\(other) 1\(index < others.count - 1 ? " ," : "")")
        }
    }

    /// What only the page of the tool itself says.
    private mutating func general() {
        macro("Sh", "ENVIRONMENT")
        macro("Bl", "-tag -width Ds")
        macro("It", "Ev XDG_RUNTIME_DIR")
        paragraph(
            "Guests are found under sidestep/NAME in this directory; without it in /run/user/UID, else in /tmp/sidestep-UID."
        )
        macro("It", "Ev NOTIFY_SOCKET")
        paragraph("A service manager, told when the guest runs and which process is the main one.")
        macro("El")
        macro("Sh", "EXIT STATUS")
        paragraph(
            "'sidestep run' ends with the status that the guest gave to its test finisher, unless one of these applies:"
        )
        macro("Bl", "-tag -width Ds")
        for status in ExitStatus.allCases {
            macro("It", String(status.rawValue))
            paragraph(status.meaning)
        }
        macro("El")
    }

    private mutating func list(_ title: String, _ items: [JSONValue], _ body: (inout MdocWriter, JSONValue) -> Void) {
        macro("Sh", title)
        macro("Bl", "-tag -width Ds")
        for item in items { body(&self, item) }
        macro("El")
    }

    /// `.Fl -name Ar value`, or `.Ar value`.
    private func form(_ argument: JSONValue) -> String {
        let value = "Ar \"\(Self.escaped(argument["valueName"]?.stringValue ?? ""))\""
        if argument["kind"] == "positional" { return value }
        let names = (argument["names"]?.arrayValue ?? []).map { name in
            (name["kind"] == "short" ? "Fl " : "Fl -") + (name["name"]?.stringValue ?? "")
        }
        return names.joined(separator: " , ") + (argument["kind"] == "flag" ? "" : " \(value)")
    }

    private mutating func synopsis(_ argument: JSONValue) {
        let dots = argument["isRepeating"]?.boolValue == true ? " ..." : ""
        let form = form(argument) + dots
        if argument["isOptional"]?.boolValue == true {
            macro("Op", form)
        } else {
            text += ".\(form)\n"
        }
    }

    private mutating func item(_ argument: JSONValue) {
        macro("It", form(argument))
        paragraph(argument["abstract"]?.stringValue ?? "")
        if let value = argument["defaultValue"]?.stringValue { paragraph("Default: \(value).") }
    }

    private mutating func macro(_ name: String, _ arguments: String = "") {
        text += arguments.isEmpty ? ".\(name)\n" : ".\(name) \(arguments)\n"
    }

    /// Running text; a new line for each sentence, as mdoc wants it.
    private mutating func paragraph(_ words: String) {
        var line = ""
        for word in words.split(separator: " ") {
            line += (line.isEmpty ? "" : " ") + word
            if word.hasSuffix("."), line.count > 2 {
                text += Self.escaped(line) + "\n"
                line = ""
            }
        }
        if !line.isEmpty { text += Self.escaped(line) + "\n" }
    }

    /// roff's special characters as they are.
    private static func escaped(_ text: String) -> String {
        var result = ""
        for character in text {
            switch character {
            case "\\": result += "\\e"
            case "\"": result += "\\(dq"
            default: result.append(character)
            }
        }
        return result.hasPrefix(".") || result.hasPrefix("'") ? "\\&" + result : result
    }

    /// How `NAME` lines are written: no capital, no full stop.
    private static func lowered(_ text: String) -> String {
        let text = text.hasSuffix(".") ? text.dropLast() : text[...]
        return text.prefix(1).lowercased() + text.dropFirst()
    }

    /// `November 26, 2026`, of the day the pages are made.
    private static var today: String {
        var now = time(nil)
        var parts = unsafe tm()
        unsafe gmtime_r(&now, &parts)
        let months = [
            "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December",
        ]
        let (month, day, year) = unsafe (Int(parts.tm_mon), parts.tm_mday, parts.tm_year + 1900)
        return "\(months[month]) \(day), \(year)"
    }
}
