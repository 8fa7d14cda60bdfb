import StockQEMU
import Testing

@Suite("The command line of a QEMU's successor") struct CommandRewriterTests {
    static let base = [
        "-M", "pc,memory-backend=ram", "-m", "512", "-object",
        "memory-backend-memfd,id=ram,size=512M,share=on,prealloc=on",
    ]

    static func facts(_ words: [String], sockets: [OpenSocket] = [], taps: [String: [Int32]] = [:]) throws
        -> SourceFacts
    {
        SourceFacts(
            commandLine: try CommandLine(words: words), version: QEMUVersion(7, 2, 22), machineType: "pc-i440fx-7.2",
            memory: [MemoryBackend(identifier: "ram", byteCount: 512 << 20, isShared: true, descriptor: 9)], taps: taps,
            sockets: sockets, workingDirectory: "/run/vm")
    }

    static func rewrite(
        _ words: [String], strategy: ReplacementStrategy = .shared, to version: QEMUVersion = QEMUVersion(10, 0, 2),
        sockets: [OpenSocket] = [], taps: [String: [Int32]] = [:], settings: [CommandLine.Option] = []
    ) throws -> NewCommandLine {
        var rewriter = CommandRewriter(
            facts: try facts(base + words, sockets: sockets, taps: taps), strategy: strategy,
            destinationVersion: version,
            settings: settings, token: "T")
        return try rewriter.rewrite()
    }

    @Test("the machine type is pinned, memory comes by descriptor, and how the process starts is left out")
    func memory() throws {
        let new = try Self.rewrite(["-S", "-incoming", "defer", "-daemonize", "-loadvm", "x"])
        #expect(new.words.starts(with: ["-machine", "pc-i440fx-7.2,memory-backend=ram", "-m", "512", "-object"]))
        let object = new.options.first { $0.name == "object" }?.argument
        #expect(object == "memory-backend-file,id=ram,size=536870912,share=on,mem-path=/proc/self/fd/4")
        #expect(new.inherited == [4: 9])
        for name in ["S", "incoming", "daemonize", "loadvm"] { #expect(!new.options.contains { $0.name == name }) }
    }

    @Test("a copy gets memory of its own, even from a shared file") func copies() throws {
        let memfd = try Self.rewrite([], strategy: .precopy)
        #expect(memfd.options.contains(.init("object", Self.base[5])) && memfd.inherited.isEmpty)
        var facts = try Self.facts(["-object", "memory-backend-file,id=ram,size=512M,share=on,mem-path=/dev/shm/ram"])
        facts.workingDirectory = "/"
        var rewriter = CommandRewriter(
            facts: facts, strategy: .postcopy, destinationVersion: QEMUVersion(10, 0), token: "T")
        #expect(
            try rewriter.rewrite().options.contains(.init("object", "memory-backend-memfd,id=ram,size=512M,share=on")))
    }

    @Test("unix sockets and the pid file are served from a private directory") func names() throws {
        let new = try Self.rewrite([
            "-qmp", "unix:/run/q.sock,server=on,wait=off", "-serial", "unix:ser,server,nowait", "-pidfile",
            "/run/vm.pid",
            "-chardev", "socket,id=c,path=/run/a,,b,server=on,logfile=/run/log",
        ])
        #expect(
            new.names == [
                .init(publicPath: "/run/q.sock", privatePath: "/run/.sidestep-T/q.sock"),
                .init(publicPath: "/run/vm/ser", privatePath: "/run/vm/.sidestep-T/ser"),
                .init(publicPath: "/run/vm.pid", privatePath: "/run/.sidestep-T/vm.pid"),
                .init(publicPath: "/run/a,b", privatePath: "/run/.sidestep-T/a,b"),
            ])
        #expect(new.options.contains(.init("mon", "chardev=compat_monitor0,mode=control")))
        #expect(new.options.contains(.init("serial", "chardev:serial0")))
        #expect(new.options.contains(.init("pidfile", "/run/.sidestep-T/vm.pid")))
        #expect(new.words.contains { $0.contains("path=/run/vm/.sidestep-T/ser") && $0.contains("wait=off") })
        #expect(new.words.contains { $0.contains("logappend=on") })
    }

    @Test("a second upgrade serves the public names again") func namesAgain() throws {
        let words = [
            "-chardev", "socket,id=c,path=/run/.sidestep-X/q.sock,server=on", "-mon", "chardev=c,mode=control",
        ]
        #expect(
            try Self.rewrite(words).names == [
                .init(publicPath: "/run/q.sock", privatePath: "/run/.sidestep-T/q.sock")
            ])
    }

    @Test("the next upgrade finds its own monitor and leaves it out") func again() throws {
        let once = try Self.rewrite([])
        let twice = try Self.rewrite(Array(once.words.dropFirst(6)))
        #expect(twice.options.filter { $0.argument?.contains("sidestep-control") == true }.count == 2)
    }

    @Test("taps go by descriptor, with what only an opener may say left out") func taps() throws {
        let new = try Self.rewrite(
            ["-netdev", "tap,id=n0,ifname=tap7,script=no,downscript=no,vhost=on"], taps: ["tap7": [11, 12]])
        #expect(new.words.contains("tap,id=n0,vhost=on,fds=5:6"))
        #expect(new.inherited == [4: 9, 5: 11, 6: 12])
    }

    @Test("a listening TCP port stays open: the socket itself goes over") func ports() throws {
        let new = try Self.rewrite(
            ["-monitor", "tcp:127.0.0.1:4444,server=on,wait=on"],
            sockets: [OpenSocket(descriptor: 13, isListening: true, local: "tcp:127.0.0.1:4444", peer: "")])
        #expect(new.words.contains("socket,id=compat_monitor0,fd=5,server=on,wait=off") && new.inherited[5] == 13)
    }

    @Test(
        "a serial port's client goes over; a monitor's, one with a protocol, and any client in postcopy connect again")
    func clients() throws {
        func socket(_ number: Int32, _ local: String) -> OpenSocket {
            OpenSocket(descriptor: number, isListening: false, local: local, peer: "")
        }
        let words = [
            "-serial", "unix:/run/ser,server=on", "-qmp", "unix:/run/q,server=on", "-chardev",
            "socket,id=t,host=::,port=5,server=on,telnet=on", "-chardev", "socket,id=m,path=/run/m,server=on,mux=on",
            "-chardev", "socket,id=p,host=::1,port=44,server=on",
        ]
        let sockets = [
            socket(20, "unix:/run/.sidestep-old/ser"), socket(21, "unix:/run/q"), socket(22, "tcp:[::]:5"),
            socket(23, "unix:/run/m"), socket(24, "tcp:[::1]:44"),
            OpenSocket(descriptor: 30, isListening: true, local: "tcp:[::]:5", peer: ""),
            OpenSocket(descriptor: 31, isListening: true, local: "tcp:[::1]:44", peer: ""),
        ]
        let new = try Self.rewrite(words, sockets: sockets)
        #expect(
            new.clients == [
                CharacterClient(identifier: "serial0", socket: sockets[0]),
                .init(identifier: "m-base", socket: sockets[3]), .init(identifier: "p", socket: sockets[4]),
            ])
        #expect(new.notes.count { $0.contains("must connect again") } == 2, "\(new.notes)")
        #expect(try Self.rewrite(words, strategy: .postcopy, sockets: sockets).clients.isEmpty)
    }

    @Test("a running guest starts by itself, but for one with clients to hand over, or with timers to mend")
    func paused() throws {
        let serial = ["-serial", "unix:/run/s,server=on,wait=off"]
        let client = OpenSocket(descriptor: 20, isListening: false, local: "unix:/run/s", peer: "")
        for strategy in ReplacementStrategy.allCases where strategy != .cpr {
            let alone = try Self.rewrite(serial, strategy: strategy)
            #expect(alone.startsByItself && !alone.options.contains(.init("S")))
            let clients = try Self.rewrite(serial, strategy: strategy, sockets: [client])
            #expect(clients.startsByItself == (strategy == .postcopy))
            #expect(clients.options.contains(.init("S")) == (strategy != .postcopy))
            var timers = try Self.facts(Self.base)
            timers.architecture = "riscv64"
            var rewriter = CommandRewriter(
                facts: timers, strategy: strategy, destinationVersion: QEMUVersion(10, 0), token: "T")
            #expect(try rewriter.rewrite().startsByItself == (strategy == .postcopy))
        }
        var facts = try Self.facts(Self.base)
        facts.isRunning = false
        var rewriter = CommandRewriter(
            facts: facts, strategy: .postcopy, destinationVersion: QEMUVersion(10, 0), token: "T")
        #expect(try rewriter.rewrite().options.contains(.init("S")))
    }

    @Test("who manages the process is seen from its arguments, its control group and its environment")
    func managers() throws {
        func unit(_ words: [String], _ environment: [String], group: String = "0::/system.slice/vm.service") throws
            -> ServiceUnit
        {
            ServiceUnit(
                arguments: try CommandLine(words: words), process: 7, controlGroups: [group], environment: environment,
                ignoresLibvirt: false)
        }
        #expect(try unit([], ["SYSTEMD_EXEC_PID=7"]).findings.map(\.grade) == [.fail])
        #expect(try unit([], ["SYSTEMD_EXEC_PID=6"]).findings.isEmpty, "a child of the main process")
        #expect(try unit([], ["SYSTEMD_EXEC_PID=7"], group: "0::/machine.slice/vm.scope").findings.isEmpty)
        let told = try unit([], ["SYSTEMD_EXEC_PID=7", "NOTIFY_SOCKET=/run/n"])
        #expect(told.findings.map(\.grade) == [.ok] && told.notifySocket == "/run/n" && told.unit == "vm.service")
        #expect(
            try unit([], ["SIDESTEP_SERVICE_MAIN=vm.service"]).findings.map(\.grade) == [.fail],
            "a successor is one too")
        let forking = try unit(["-daemonize", "-pidfile", "/run/p"], ["SYSTEMD_EXEC_PID=6"])
        #expect(forking.findings.map(\.grade) == [.ok])
        #expect(try unit(["-name", "guest=/var/lib/libvirt/qemu/x"], []).findings.map(\.subject) == ["libvirt"])
    }

    @Test("sockets that an earlier upgrade handed over by number are handed over again") func numbers() throws {
        let sockets = [
            OpenSocket(descriptor: 5, isListening: true, local: "tcp:127.0.0.1:44", peer: ""),
            OpenSocket(descriptor: 19, isListening: false, local: "tcp:127.0.0.1:44", peer: "tcp:127.0.0.1:999"),
            OpenSocket(descriptor: 6, isListening: false, local: "", peer: "unix:/run/peer"),
        ]
        let new = try Self.rewrite(
            ["-chardev", "socket,id=t,fd=5,server=on,wait=off", "-chardev", "socket,id=c,fd=6"], sockets: sockets)
        #expect(new.inherited[5] == 5 && new.inherited[6] == 6)
        #expect(new.clients == [CharacterClient(identifier: "t", socket: sockets[1])])
        #expect(throws: UpgradeFailure.self) { try Self.rewrite(["-chardev", "socket,id=c,fd=7"], sockets: sockets) }
    }

    @Test("a stream is connected anew where QEMU can do that, and refused where it cannot") func streams() throws {
        let words = ["-netdev", "stream,id=n0,server=off,addr.type=unix,addr.path=/run/passt"]
        #expect(try Self.rewrite(words).words.contains(words[1] + ",reconnect-ms=20"))
        #expect(throws: UpgradeFailure.self) { try Self.rewrite(words, to: QEMUVersion(7, 2, 22)) }
    }

    @Test(
        "what cannot be carried over is refused by its name",
        arguments: [
            ["-snapshot"], ["-spice", "port=5900"], ["-vnc", ":1"], ["-netdev", "user,id=n,hostfwd=tcp::2222-:22"],
            ["-netdev", "vde,id=n"], ["-device", "vfio-pci,host=01:00.0"],
            ["-object", "filter-dump,id=d,netdev=n,file=x"],
            ["-serial", "/dev/ttyS0"], ["-chardev", "udp,id=u,host=h,port=1"], ["-readconfig", "f"],
            ["-D", "/var/log/q"],
            ["-drive", "file=a,snapshot=on"], ["-object", "{broken"], ["-gdb", "tcp::1234"],
            ["-netdev", "tap,id=n,ifname=none"],
            ["-chardev", "socket,id=c,path=/nobody"], ["-device", #"{"driver":"vhost-vsock-pci","guest-cid":3}"#],
        ])
    func refusals(words: [String]) throws {
        let failure = #expect(throws: UpgradeFailure.self) { try Self.rewrite(words) }
        #expect(
            failure?.kind == .refused && failure?.description.hasPrefix(words[0]) == true,
            "\(failure?.description ?? "")")
    }

    @Test("--set replaces an option or joins its like, and cannot touch what the upgrade decides") func settings()
        throws
    {
        let new = try Self.rewrite(
            ["-rtc", "base=utc", "-global", "a.b=1"],
            settings: [.init("rtc", "base=localtime"), .init("global", "c.d=2")])
        #expect(!new.words.contains("base=utc") && new.words.contains("base=localtime"))
        #expect(new.words.contains("a.b=1") && new.words.contains("c.d=2"))
        #expect(throws: UpgradeFailure.self) { try Self.rewrite([], settings: [.init("incoming", "tcp::1")]) }
    }

    @Test("RAM is found in what QEMU tells of its address space") func places() {
        let listing = """
             Root memory region: system
              0000000000000000-00000000000c2fff (prio 0, ram): ram
              00000000000f0000-00000000000fffff (prio 0, rom): ram @00000000000f0000
              0000000100000000-000000017fffffff (prio 0, ram): high @0000000080000000 KVM
            """.split(separator: "\n").joined(separator: "\r\n")
        #expect(RAMPlace(of: "ram", in: listing)?.address == 0)
        #expect(RAMPlace(of: "high", in: listing)?.offset == 0x8000_0000)
        #expect(RAMPlace(of: "none", in: listing) == nil)
        let answer = "Host virtual address for 0x100000000 (high) is 0x7ff4d7fff000\r\n"
        #expect(RAMPlace.hostAddress(in: answer, region: "high") == 0x7ff4_d7ff_f000)
        #expect(RAMPlace.hostAddress(in: answer, region: "ram") == nil)
    }
}
