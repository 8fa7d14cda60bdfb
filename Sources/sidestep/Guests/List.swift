import ArgumentParser
import MonitorClient
import QMPProtocol
import Supervisor

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "Show the guests that run.")

    @OptionGroup var output: FormatOption

    func run() throws {
        let guests: [JSONValue] = try RunDirectory.list().map { entry in
            var guest: JSONObject = ["name": .string(entry.name)]
            guest["process"] = entry.process.map { JSONValue($0) }
            // A guest that does not answer is still there.
            if let connection = try? QMPConnection(path: entry.qmpSocketPath, timeoutMilliseconds: 1000),
                let facts = try? connection.run("x-sidestep-inspect", timeoutMilliseconds: 1000)
            {
                guest["status"] = facts["status"]
                guest["memory"] = facts["configuration"]?["memory"]
                guest["cpus"] = facts["configuration"]?["cpus"]
                guest["console"] = facts["console"]
            } else {
                guest["status"] = "no answer"
            }
            return .object(guest)
        }
        output.show(.array(guests)) { _ in
            guests.isEmpty
                ? ""
                : table(
                    [["NAME", "STATUS", "PROCESS", "MEMORY", "CPUS", "CONSOLE"]]
                        + guests.map { guest in
                            ["name", "status", "process", "memory", "cpus", "console"].map {
                                guest[$0].map { $0.stringValue ?? $0.json } ?? "-"
                            }
                        })
        }
    }
}

struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect", abstract: "Show what a guest is made of and how it is.",
        discussion: "The configuration is complete: 'sidestep run --config' takes it.")

    @OptionGroup var guest: GuestArgument
    @OptionGroup var output: FormatOption

    func run() throws {
        let facts = try guest.connect().run("x-sidestep-inspect")
        output.show(facts) { facts in
            var rows: [[String]] = []
            for member in facts.objectValue?.members ?? [] where member.key != "configuration" {
                rows.append([member.key, text(member.value)])
            }
            rows.append(["configuration", ""])
            for member in facts["configuration"]?.objectValue?.members ?? [] {
                rows.append(["  " + member.key, text(member.value)])
            }
            return table(rows)
        }
    }

    private func text(_ value: JSONValue) -> String { value.stringValue ?? value.json }
}
