import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Supervisor

/// Whether what waits at a URI can take a guest.
struct DestinationCheck {
    var subject: CheckedGuest
    var uri: String
    /// The QMP socket of who waits there, if it was given.
    var peer: String?

    func check(_ report: inout CheckReport) throws {
        report.status = .destinationUnfit
        let address: MigrationAddress
        do { address = try MigrationAddress(uri: uri) } catch {
            report.fail("uri", error.description, remedy: "'sidestep help migrate' shows what there is")
            return
        }
        switch address {
        case .unix(let path): checkSocket(path, &report)
        case .file(let path, _): checkFile(path, &report)
        case .tcp where subject.has("unix-page-flipping"):
            report.fail(
                "channel", "pages are flipped over unix sockets only", remedy: "use unix:PATH, or switch it off")
        default: break
        }
        if case .file = address { return }
        if case .exec = address { return }
        if let peer {
            let path = peer.hasPrefix("unix:") ? String(peer.dropFirst(5)) : peer
            do throws(QMPConnection.Failure) { try checkPeer(try QMPConnection(path: path), &report) } catch {
                report.fail("peer", "\(path): \(error)", remedy: "--peer is the QMP socket of who waits at the URI")
            }
        } else if let connection = try waitingGuest(at: address) {
            do throws(QMPConnection.Failure) { try checkPeer(connection, &report) } catch {
                report.fail("peer", "it does not answer: \(error)", remedy: "start it again")
            }
        } else {
            report.warn(
                "peer", "who waits there is not known: version, capabilities and RAM were not compared",
                remedy: "name its QMP socket by --peer")
        }
    }

    /// A guest of this user that waits at the address.
    private func waitingGuest(at address: MigrationAddress) throws -> QMPConnection? {
        for entry in try RunDirectory.list() where entry.name != subject.name {
            guard let connection = try? QMPConnection(path: entry.qmpSocketPath, timeoutMilliseconds: 1000),
                let answer = try? connection.run("query-migrate", timeoutMilliseconds: 1000),
                let sockets = answer["socket-address"]?.arrayValue
            else { continue }
            for socket in sockets {
                switch address {
                case .unix(let path) where socket["path"]?.stringValue == path: return connection
                case .tcp(_, let port) where socket["port"]?.stringValue == String(port): return connection
                default: break
                }
            }
        }
        return nil
    }

    private func checkPeer(_ connection: QMPConnection, _ report: inout CheckReport) throws(QMPConnection.Failure) {
        let version = try connection.run("query-version")
        let numbers = ["major", "minor", "micro"].map { version["qemu"]?[$0]?.json ?? "?" }.joined(separator: ".")
        let package = version["package"]?.stringValue ?? ""
        if package.hasPrefix(Product.name) {
            if package == Product.qmpVersion.package {
                report.ok("peer", package)
            } else {
                report.warn(
                    "peer", "it is \(package), this is \(Product.version)", remedy: "use one version at both ends")
            }
        } else {
            checkStock(numbers, major: version["qemu"]?["major"]?.integerValue ?? 0, &report)
        }
        let status = try connection.run("query-status")["status"]?.stringValue ?? "?"
        if status != "inmigrate" {
            report.fail("peer", "it is \(status), not waiting for a guest", remedy: "start it with --incoming \(uri)")
        }
        let memory = try connection.run("query-memory-size-summary")["base-memory"]?.unsignedValue ?? 0
        if memory == subject.memory {
            report.ok("RAM", "\(SizeText.format(memory)) at both ends")
        } else {
            report.fail(
                "RAM", "\(SizeText.format(memory)) there, \(SizeText.format(subject.memory)) here",
                remedy: "start it with --memory \(SizeText.format(subject.memory)) (QEMU: -m)")
        }
        let processors = try connection.run("query-cpus-fast").arrayValue?.count ?? 0
        let wanted = subject.configuration["cpus"]?.integerValue ?? 0
        if Int64(processors) == wanted {
            report.ok("processors", "\(processors) at both ends")
        } else {
            report.fail(
                "processors", "\(processors) there, \(wanted) here",
                remedy: "start it with --cpus \(wanted) (QEMU: -smp)")
        }
        checkCapabilities(try connection.run("query-migrate-capabilities"), &report)
    }

    /// Stock QEMU takes a state of its own layout only.
    private func checkStock(_ version: String, major: Int64, _ report: inout CheckReport) {
        let release = major < 10 ? "qemu-7.2" : major == 10 ? "qemu-10.0" : "qemu-11.1"
        let compat = subject.configuration["compat"]?.stringValue
        if compat == release {
            report.ok("peer", "QEMU \(version), which the guest was started for")
        } else {
            report.fail(
                "peer",
                "QEMU \(version), and the guest was started \(compat.map { "for \($0)" } ?? "without --compat")",
                remedy: "start a guest that is to go there with --compat \(release)")
        }
    }

    /// Both ends must have switched on the same, where it changes what is sent.
    private func checkCapabilities(_ theirs: JSONValue, _ report: inout CheckReport) {
        let matter = [
            "unix-page-flipping", "multifd", "postcopy-ram", "postcopy-preempt", "x-ignore-shared", "mapped-ram",
            "switchover-ack", "validate-uuid",
        ]
        let names = Set((theirs.arrayValue ?? []).compactMap { $0["capability"]?.stringValue })
        var differs = false
        for name in matter where subject.has(name) != CheckedGuest.has(name, theirs) {
            differs = true
            if names.contains(name) {
                report.fail(
                    "capabilities",
                    "\(name) is \(subject.has(name) ? "off" : "on") there and \(subject.has(name) ? "on" : "off") here",
                    remedy: "migrate-set-capabilities at both ends alike")
            } else {
                report.fail("capabilities", "\(name) is on here and unknown there", remedy: "switch it off here")
            }
        }
        if !differs { report.ok("capabilities", "the same at both ends") }
    }

    private func checkSocket(_ path: String, _ report: inout CheckReport) {
        var status = stat()
        if unsafe stat(path, &status) != 0 {
            report.fail(
                "destination", "\(path): \(errorText(errno))",
                remedy: "start 'sidestep run --incoming \(uri) ...' first")
        } else if status.st_mode & S_IFMT != S_IFSOCK {
            report.fail("destination", "\(path) is no socket", remedy: "remove it, and let the destination make it")
        } else if unsafe access(path, W_OK) != 0 {
            report.fail("destination", "\(path): \(errorText(errno))", remedy: "let both ends run as one user")
        } else {
            report.ok("destination", "\(path) is a socket we may use")
        }
    }

    private func checkFile(_ path: String, _ report: inout CheckReport) {
        let slash = path.lastIndex(of: "/")
        let directory = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        var space = statvfs()
        guard unsafe statvfs(directory, &space) == 0, unsafe access(directory, W_OK) == 0 else {
            report.fail("destination", "\(directory): \(errorText(errno))", remedy: "name a directory we may write to")
            return
        }
        let free = UInt64(space.f_bavail) * UInt64(space.f_frsize)
        let text =
            "\(SizeText.format(free & ~0xF_FFFF)) free in \(directory) for up to \(SizeText.format(subject.memory))"
        if free > subject.memory {
            report.ok("destination", text)
        } else {
            report.warn("destination", text, remedy: "make room, or save elsewhere")
        }
    }
}
