import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Testing

@testable import Supervisor

/// `query-qmp-schema` as a client reads it: types by name, nothing taken from our own declarations.
struct ReadSchema {
    let entities: [String: JSONValue]
    let commands: [String: JSONValue]
    let events: [String: JSONValue]

    init(_ schema: JSONValue) throws {
        var entities: [String: JSONValue] = [:]
        var commands: [String: JSONValue] = [:]
        var events: [String: JSONValue] = [:]
        for entity in try #require(schema.arrayValue) {
            let name = try #require(entity["name"]?.stringValue)
            switch entity["meta-type"]?.stringValue {
            case "command": commands[name] = entity
            case "event": events[name] = entity
            default:
                #expect(entities[name] == nil, "\(name) is described twice")
                entities[name] = entity
            }
        }
        self.entities = entities
        self.commands = commands
        self.events = events
    }

    func type(_ value: JSONValue?) throws -> JSONValue {
        let name = try #require(value?.stringValue)
        return try #require(entities[name], "the type \(name) is not described")
    }

    func members(of type: JSONValue) -> [JSONValue] { type["members"]?.arrayValue ?? [] }

    /// What is wrong with a value; nil when it is of the type.
    func complaint(_ value: JSONValue, _ type: JSONValue, at path: String) throws -> String? {
        switch type["meta-type"]?.stringValue {
        case "builtin":
            let kind = type["json-type"]?.stringValue ?? ""
            let fits =
                switch (kind, value) {
                case ("value", _), ("string", .string), ("boolean", .bool), ("int", .integer), ("int", .unsigned),
                    ("number", .number), ("number", .integer), ("number", .unsigned), ("null", .null):
                    true
                default: false
                }
            return fits ? nil : "\(path) is \(value.kind), not \(kind)"
        case "enum":
            let words = (type["values"]?.arrayValue ?? []).compactMap(\.stringValue)
            #expect(words == members(of: type).compactMap { $0["name"]?.stringValue })
            return words.contains(value.stringValue ?? "") ? nil : "\(path) is \(value.json), none of \(words)"
        case "array":
            let element = try self.type(type["element-type"])
            for (index, item) in (value.arrayValue ?? []).enumerated() {
                if let wrong = try complaint(item, element, at: "\(path)[\(index)]") { return wrong }
            }
            return value.arrayValue == nil ? "\(path) is no array" : nil
        case "alternate":
            for member in members(of: type) where try complaint(value, self.type(member["type"]), at: path) == nil {
                return nil
            }
            return "\(path) is none of its alternates"
        case "object":
            guard let object = value.objectValue else { return "\(path) is no object" }
            var expected = members(of: type)
            if let tag = type["tag"]?.stringValue {
                for variant in type["variants"]?.arrayValue ?? [] where variant["case"] == object[tag] {
                    expected += members(of: try self.type(variant["type"]))
                }
            }
            for member in expected {
                let name = member["name"]?.stringValue ?? ""
                if let item = object[name] {
                    if let wrong = try complaint(item, self.type(member["type"]), at: "\(path).\(name)") {
                        return wrong
                    }
                } else if member["default"] == nil {
                    return "\(path).\(name) is missing"
                }
            }
            let names = expected.compactMap { $0["name"]?.stringValue }
            return object.keys.first { !names.contains($0) }.map { "\(path).\($0) is not described" }
        default: return "\(path): no such kind of type"
        }
    }

    /// A value that fits no type of this kind.
    func misfit(_ type: JSONValue) throws -> JSONValue? {
        switch type["meta-type"]?.stringValue {
        case "builtin": type["json-type"] == "value" ? nil : type["json-type"] == "boolean" ? 5 : true
        case "alternate": true
        case "enum": "no-such-word"
        default: true
        }
    }
}

extension SupervisorTests {
    @Suite("The schema is true") struct SchemaTests {
        private func refusal(_ client: QMPConnection, _ command: String, _ arguments: JSONObject) -> String? {
            do { _ = try client.run(command, arguments) } catch {
                if case .refused(let error) = error { return error.description }
                return "\(error)"
            }
            return nil
        }

        @Test("it has every command and event, and each type it speaks of") func complete() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let schema = try ReadSchema(client.run("query-qmp-schema"))
            let listed = try #require(try client.run("query-commands").arrayValue).compactMap {
                $0["name"]?.stringValue
            }
            #expect(Set(listed) == Set(schema.commands.keys) && listed.count == schema.commands.count)
            #expect(Set(schema.events.keys) == Set(SupervisorEvent.allCases.map(\.rawValue)))
            for command in schema.commands.values {
                for end in ["arg-type", "ret-type"] { _ = try schema.type(command[end]) }
            }
            for entity in schema.entities.values {
                for member in schema.members(of: entity) + (entity["variants"]?.arrayValue ?? [])
                where entity["meta-type"] != "enum" { _ = try schema.type(member["type"]) }
            }
        }

        @Test("every command takes the arguments that are described, and no others") func arguments() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let schema = try ReadSchema(client.run("query-qmp-schema"))
            for (name, command) in schema.commands where name != "quit" && name != "qmp_capabilities" {
                let members = schema.members(of: try schema.type(command["arg-type"]))
                let required = members.filter { $0["default"] == nil }
                #expect(
                    refusal(client, name, ["no-such-argument": 1])
                        == (required.first.map { "Parameter '\($0["name"]?.stringValue ?? "")' is missing" }
                            ?? "Parameter 'no-such-argument' is unexpected"))
                // Each argument, of a kind that does not fit: judged, so it is known, and its type is what is described.
                for member in members {
                    let argument = try #require(member["name"]?.stringValue)
                    guard let misfit = try schema.misfit(try schema.type(member["type"])) else { continue }
                    var arguments: JSONObject = [:]
                    for other in required where other["name"] != member["name"] {
                        arguments[other["name"]?.stringValue ?? ""] = try example(
                            try schema.type(other["type"]), schema)
                    }
                    arguments[argument] = misfit
                    let text = refusal(client, name, arguments) ?? "accepted"
                    #expect(
                        text.hasPrefix("Invalid parameter type for '\(argument)'")
                            || text.hasPrefix("Parameter '\(argument)' "), "\(name): \(text)")
                }
            }
        }

        private func example(_ type: JSONValue, _ schema: ReadSchema) throws -> JSONValue {
            switch type["meta-type"]?.stringValue {
            case "enum": return type["values"]?[0] ?? nil
            case "array": return []
            case "object": return [:]
            case "alternate": return try example(try schema.type(schema.members(of: type)[0]["type"]), schema)
            default:
                return switch type["json-type"]?.stringValue {
                case "string": "x"
                case "boolean": false
                default: 1
                }
            }
        }

        @Test("what queries answer, and what events carry, is as described") func answers() throws {
            let from = try SupervisorFixture(name: "source") {
                $0.disks = [DiskConfiguration(path: "/dev/null", isReadOnly: true)]
                $0.uuid = "00112233-4455-6677-8899-aabbccddeeff"
            }
            let to = try MigrationCommandTests.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            let schema = try ReadSchema(source.run("query-qmp-schema"))
            func check(_ client: QMPConnection) throws {
                for name in schema.commands.keys.sorted() where name.hasPrefix("query-") || name == "x-sidestep-inspect"
                {
                    let wrong = try schema.complaint(
                        client.run(name), schema.type(schema.commands[name]?["ret-type"]), at: name)
                    #expect(wrong == nil)
                }
            }
            try check(source)
            for client in [source, destination] {
                _ = try client.run(
                    "migrate-set-capabilities",
                    [
                        "capabilities": [
                            ["capability": "events", "state": true], ["capability": "return-path", "state": true],
                        ]
                    ])
            }
            _ = try source.run("cont")
            _ = try source.run("system_reset")
            _ = try source.run("system_powerdown")
            _ = try source.run("migrate", ["uri": "unix:/nonexistent/socket"])
            _ = try MigrationCommandTests.wait(source)
            try check(source)
            let uri = JSONValue.string("unix:\(to.path)/migration.sock")
            _ = try destination.run("migrate-incoming", ["uri": uri])
            try check(destination)
            _ = try source.run("migrate", ["uri": uri])
            _ = try MigrationCommandTests.wait(source)
            _ = try MigrationCommandTests.wait(destination)
            try check(source)
            try check(destination)
            _ = try source.run("quit")
            var events = destination.events
            while let event = try? source.nextEvent(timeoutMilliseconds: 5000) {
                events.append(event)
                if event.name == "SHUTDOWN" { break }
            }
            #expect(Set(events.map(\.name)) == Set(SupervisorEvent.allCases.map(\.rawValue)))
            for event in events {
                let described = try #require(schema.events[event.name], "\(event.name)")
                let wrong = try schema.complaint(
                    .object(event.data ?? [:]), schema.type(described["arg-type"]), at: event.name)
                #expect(wrong == nil)
            }
        }
    }

    @Suite("Nothing is left behind") struct RemainsTests {
        private func threadCount() throws -> Int {
            guard let directory = opendir("/proc/self/task") else { throw SystemCallError.last("opendir") }
            defer { closedir(directory) }
            var count = 0
            while let entry = readdir(directory) { if entry.pointee.d_name.0 != 0x2E { count += 1 } }
            return count
        }

        @Test("supervisors that end leave no thread and no descriptor") func threads() throws {
            func round() throws {
                let from = try SupervisorFixture(name: "source")
                let to = try MigrationCommandTests.incoming()
                let source = try from.connect()
                let destination = try to.connect()
                _ = try source.run("cont")
                let uri = JSONValue.string("unix:\(to.path)/migration.sock")
                _ = try destination.run("migrate-incoming", ["uri": uri])
                _ = try source.run("migrate", ["uri": uri])
                #expect(try MigrationCommandTests.wait(source)["status"] == "completed")
                #expect(try MigrationCommandTests.wait(destination)["status"] == "completed")
            }
            try round()
            let before = try threadCount()
            for _ in 0..<20 { try round() }
            // Other tests of the process start and end threads of their own; ours would be 20 times as many.
            var polls = 0
            while polls < 2000, try threadCount() > before + 10 {
                usleep(1000)
                polls += 1
            }
            #expect(try threadCount() <= before + 10)
        }
    }
}
