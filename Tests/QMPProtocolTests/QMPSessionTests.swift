import Testing

@testable import QMPProtocol

@Suite("A QMP conversation") struct QMPSessionTests {
    /// Feeds text and answers what happened: replies as text, commands by name.
    static func talk(_ session: inout QMPSession, _ text: String) -> [String] {
        session.append(Array(text.utf8))
        var result: [String] = []
        while let action = session.next() {
            switch action {
            case .reply(let bytes): result.append(String(decoding: bytes, as: UTF8.self))
            case .execute(let command):
                result.append(
                    "execute \(command.name) \(JSONValue.object(command.arguments).json) \(command.identifier?.json ?? "-")"
                )
            }
        }
        return result
    }

    static func negotiated() -> QMPSession {
        var session = QMPSession()
        _ = talk(&session, #"{"execute":"qmp_capabilities"}"#)
        return session
    }

    @Test("the greeting and the lines have QEMU's form") func lines() {
        let version = QMPVersion(major: 10, minor: 0, micro: 0, package: "sidestep")
        #expect(
            String(decoding: QMPMessage.greetingLine(version, capabilities: ["oob"]), as: UTF8.self)
                == #"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": "sidestep"}, "capabilities": ["oob"]}}"#
                + "\r\n")
        #expect(
            String(decoding: QMPEvent(name: "STOP", microseconds: 1_500_007).line, as: UTF8.self)
                == #"{"timestamp": {"seconds": 1, "microseconds": 500007}, "event": "STOP"}"# + "\r\n")
    }

    @Test("nothing is answered before negotiation, and negotiation happens once") func negotiation() {
        var session = QMPSession()
        #expect(
            Self.talk(&session, #"{"execute":"query-status","id":7}"#) == [
                #"{"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}, "id": 7}"#
                    + "\r\n"
            ])
        #expect(!session.isNegotiated)
        #expect(
            Self.talk(&session, #"{"execute":"qmp_capabilities","id":"x"}"#) == [#"{"return": {}, "id": "x"}"# + "\r\n"]
        )
        #expect(session.isNegotiated)
        #expect(
            Self.talk(&session, #"{"execute":"qmp_capabilities"}"#) == [
                #"{"error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#
                    + "\r\n"
            ])
    }

    @Test("a command carries its arguments and any id") func commands() {
        var session = Self.negotiated()
        #expect(
            Self.talk(
                &session, #"{"execute":"migrate","arguments":{"uri":"unix:/x"},"id":{"a":[1]}}{"execute":"stop"}"#) == [
                    #"execute migrate {"uri": "unix:/x"} {"a": [1]}"#, "execute stop {} -",
                ])
    }

    @Test(
        "mistakes are named as QEMU names them",
        arguments: [
            ("[]", "QMP input must be a JSON object"),
            ("12 ", "QMP input must be a JSON object"),
            ("{}", "QMP input lacks member 'execute'"),
            (#"{"execute":1}"#, "QMP input member 'execute' must be a string"),
            (#"{"execute":"a","arguments":[]}"#, "QMP input member 'arguments' must be an object"),
            (#"{"execute":"a","more":1}"#, "QMP input member 'more' is unexpected"),
            (#"{"exec-oob":"a"}"#, "QMP input member 'exec-oob' is unexpected"),
            ("{]\n", "JSON parse error, expecting value"), ("@\n", "JSON parse error, stray '@'"),
            (#"{"execute" "a"}"#, "JSON parse error, missing : in object pair"),
            (#"{"execute":"a",}"#, "JSON parse error, expecting value"),
        ])
    func mistakes(input: String, text: String) throws {
        var session = Self.negotiated()
        let replies = Self.talk(&session, input)
        let reply = try JSONValue.parse(try #require(replies.first))
        #expect(replies.count == 1)
        #expect(reply["error"]?["desc"] == .string(text))
        #expect(reply["error"]?["class"] == "GenericError")
        #expect(Self.talk(&session, #"{"execute":"after"}"#) == ["execute after {} -"])
    }

    @Test("out-of-band is there for who asks for it") func outOfBand() {
        var session = QMPSession()
        _ = Self.talk(&session, #"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#)
        #expect(Self.talk(&session, #"{"exec-oob":"migrate-pause"}"#) == ["execute migrate-pause {} -"])
        var other = QMPSession()
        let refused = Self.talk(&other, #"{"execute":"qmp_capabilities","arguments":{"enable":["nope"]}}"#)
        #expect(refused[0].contains("does not accept value 'nope'"))
        #expect(!other.isNegotiated)
    }

    @Test("a successor goes on with the same client") func resumes() throws {
        var session = Self.negotiated()
        #expect(Self.talk(&session, #"{"execute":"st"#) == [])
        let saved = try JSONCoding.model(QMPSession.Saved.self, from: JSONCoding.value(of: session.saved))
        var successor = QMPSession(resuming: saved)
        #expect(Self.talk(&successor, #"op"}"#) == ["execute stop {} -"])
    }

    @Test("random messages never trap", arguments: 0..<16 as Range<UInt64>)
    func noise(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let words = [
            "{", "}", "[", "]", "\"execute\"", "\"arguments\"", "\"id\"", ":", ",", "\"qmp_capabilities\"",
            "\"enable\"",
            "\"oob\"", "1", "-1e9999", "null", "\"\\ud800\"", "\"exec-oob\"", "\n", "18446744073709551616", "\u{7f}",
        ]
        var session = QMPSession()
        for _ in 0..<3000 { _ = Self.talk(&session, words.randomElement(using: &random)!) }
    }
}

@Suite("QMP types") struct QMPTypeTests {
    static let arguments = QMPType.object(
        "q_obj_migrate-arg",
        [
            .optional("uri", .string), .optional("detach", .boolean), .optional("count", .integer),
            .optional("rate", .number),
            .optional(
                "capabilities",
                .array(
                    of: .object(
                        "Status",
                        [
                            .required("capability", .enumeration("Capability", ["events", "multifd"])),
                            .required("state", .boolean),
                        ]))),
            .optional(
                "addr",
                .union(
                    "Address", tag: .required("transport", .enumeration("Transport", ["socket", "exec"])),
                    [
                        "socket": .union(
                            "SocketAddress", tag: .required("type", .enumeration("SocketType", ["unix", "fd"])),
                            [
                                "unix": .object("UnixAddress", [.required("path", .string)]),
                                "fd": .object("FdAddress", [.required("str", .string)]),
                            ]),
                        "exec": .object("ExecAddress", [.required("args", .array(of: .string))]),
                    ])),
            .optional("tls", .alternate("StrOrNull", [.string, .null])),
        ])

    @Test(
        "what fits is accepted",
        arguments: [
            "{}", #"{"uri":"x","detach":true,"count":-5,"rate":1}"#, #"{"rate":1.5,"tls":null}"#, #"{"tls":"a"}"#,
            #"{"capabilities":[{"capability":"events","state":true}]}"#,
            #"{"addr":{"transport":"socket","type":"unix","path":"/x"}}"#,
            #"{"addr":{"transport":"exec","args":["a","b"]}}"#,
        ])
    func accepted(text: String) throws {
        try Self.arguments.check(arguments: try #require(try JSONValue.parse(text).objectValue))
    }

    @Test(
        "what does not fit is named",
        arguments: [
            (#"{"uri":1}"#, "Invalid parameter type for 'uri', expected: string"),
            (#"{"count":1.5}"#, "Invalid parameter type for 'count', expected: integer"),
            (#"{"nope":1}"#, "Parameter 'nope' is unexpected"),
            (
                #"{"capabilities":[{"capability":"nope","state":true}]}"#,
                "Parameter 'capability' does not accept value 'nope'"
            ),
            (#"{"capabilities":[{"capability":"events"}]}"#, "Parameter 'capabilities[0].state' is missing"),
            (#"{"addr":{"transport":"socket","type":"unix"}}"#, "Parameter 'addr.path' is missing"),
            (
                #"{"addr":{"transport":"socket","type":"unix","path":"x","args":[]}}"#,
                "Parameter 'addr.args' is unexpected"
            ),
            (#"{"addr":{}}"#, "Parameter 'addr.transport' is missing"),
            (#"{"tls":1}"#, "Invalid parameter type for 'tls', expected: StrOrNull"),
        ])
    func refused(text: String, message: String) throws {
        let value = try #require(try JSONValue.parse(text).objectValue)
        let error = #expect(throws: QMPError.self) { try Self.arguments.check(arguments: value) }
        #expect(error?.description == message)
    }

    @Test("introspection names every type it refers to") func closed() throws {
        var introspection = QMPIntrospection()
        introspection.add(
            command: "migrate", arguments: Self.arguments, returns: .object("Empty", []), allowsOutOfBand: false)
        introspection.add(event: "STOP", data: .object("Empty", []))
        let entries = try #require(introspection.json.arrayValue)
        let names = Set(entries.compactMap { $0["name"]?.stringValue })
        #expect(names.count == entries.count)
        for entry in entries {
            var references = ["arg-type", "ret-type", "element-type"].compactMap { entry[$0]?.stringValue }
            for list in ["members", "variants"] where entry["meta-type"] != "enum" {
                references += (entry[list]?.arrayValue ?? []).compactMap { $0["type"]?.stringValue }
            }
            #expect(references.allSatisfy { names.contains($0) })
        }
    }
}
