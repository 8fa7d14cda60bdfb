import QMPProtocol

/// Types that several commands share, by QEMU's names.
enum QMPTypes {
    /// `{}`.
    static let nothing = QMPType.object("q_empty", [])

    static let runState = QMPType.enumeration("RunState", RunState.allCases.map(\.rawValue))

    static let socketAddress = QMPType.union(
        "SocketAddress", tag: .required("type", .enumeration("SocketAddressType", ["inet", "unix", "vsock", "fd"])),
        [
            "inet": .object(
                "InetSocketAddress",
                [
                    .required("host", .string), .required("port", .string), .optional("numeric", .boolean),
                    .optional("to", .integer), .optional("ipv4", .boolean), .optional("ipv6", .boolean),
                    .optional("keep-alive", .boolean), .optional("mptcp", .boolean),
                ]),
            "unix": .object(
                "UnixSocketAddress",
                [.required("path", .string), .optional("abstract", .boolean), .optional("tight", .boolean)]),
            "vsock": .object("VsockSocketAddress", [.required("cid", .string), .required("port", .string)]),
            "fd": .object("FdSocketAddress", [.required("str", .string)]),
        ])
}
