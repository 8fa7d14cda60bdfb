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

    /// Set-up for ``startPasst(in:)``, which hands on what its namespace has: a route outwards, and the address it calls gateway.
    package static let outside = [
        "ip addr add 10.8.0.1/32 dev lo", "ip tuntap add outside mode tap", "ip addr add 10.7.0.2/24 dev outside",
        "ip link set outside up", "ip route add default via 10.7.0.1",
        "echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range",
    ]

    /// For a guest with the address 10.8.0.2.
    package static func passtArguments(socket: String) -> [String] {
        ["--foreground", "--stderr", "--one-off", "-s", socket, "-a", "10.8.0.2", "-n", "24", "-g", "10.8.0.1"]
    }

    package func startPasst(in directory: TemporaryDirectory) throws -> (passt: RunningProgram, socket: String) {
        // passt gives up its privileges and makes its socket as somebody else.
        try HostTools.need(
            "sh", ["-ec", "chmod 755 \(directory.path); mkdir -m 777 \(directory.file("passt"))"])
        let socket = directory.file("passt/socket")
        let passt = try start("passt", Self.passtArguments(socket: socket))
        try passt.errors.wait(for: "socket bound at", seconds: 30)
        return (passt, socket)
    }
}
