import LinuxCalls

/// A network namespace of the test's own, with nothing in it but what the test puts there; needs ``Requirement/taps``.
package final class PrivateNetwork: Sendable {
    /// Keeps the namespace alive.
    private let holder: RunningProgram

    /// - Parameter setUp: Shell commands run inside before anything else, each of which must succeed.
    package init(setUp: [String]) throws {
        let commands = ["mount -t sysfs sysfs /sys", "ip link set lo up"] + setUp + ["echo ready", "exec sleep 1000"]
        holder = try RunningProgram(
            "unshare", ["--net", "--mount", "sh", "-ec", commands.joined(separator: "\n")],
            name: "the network's set-up",
            environment: ["PATH": HostTools.searchPath])
        try holder.wait(for: "ready", seconds: 20)
    }

    /// Starts a program inside.
    package func start(
        _ program: String, _ arguments: [String], name: String? = nil, environment: [String: String] = [:],
        limitSeconds: Double = 300
    ) throws -> RunningProgram {
        let path = program.contains("/") ? program : HostTools.path(of: program) ?? program
        return try RunningProgram(
            "nsenter", ["--target", "\(holder.process.processIdentifier)", "--net", "--mount", "--", path] + arguments,
            name: name ?? program, environment: environment, limitSeconds: limitSeconds)
    }

    /// Serves one file to whoever connects, over HTTP, until the test lets go of the answer.
    package func serve(file: String, address: String, port: Int, in directory: TemporaryDirectory) throws
        -> RunningProgram
    {
        let script = directory.file("serve")
        try directory.write(
            Array("#!/bin/sh\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n'\nexec cat '\(file)'\n".utf8), to: "serve")
        try HostTools.need("chmod", ["755", script])
        let server = try start(
            "socat", ["-d", "-d", "TCP-LISTEN:\(port),bind=\(address),fork,reuseaddr", "EXEC:\(script)"], name: "socat")
        try server.errors.wait(for: "listening on", seconds: 20)
        return server
    }
}
