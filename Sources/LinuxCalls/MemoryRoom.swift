/// How much memory this process and its children may still take: the least that the memory control groups above it, and the
/// host, have left. What the kernel can take back from the page cache counts, and so does swap space.
///
/// Source: cgroups(7); the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; proc(5), MemAvailable.
package struct MemoryRoom: Sendable {
    /// What the narrowest place has left.
    package struct Answer: Hashable, Sendable {
        package var byteCount: Int
        /// All that the place may have; nil is the host.
        package var limitByteCount: Int?
        /// For people: the control group's directory, or the host.
        package var place: String
    }

    /// Directories of control groups, this process's first.
    package let directories: [String]
    private let isUnified: Bool
    private let root: String

    /// Limits of more than this are none: the first version's hierarchy has a number for that.
    private static let unlimited = 1 << 60

    /// - Parameter root: Stands before every path, for tests.
    package init(root: String = "") {
        self.root = root
        let groups = Self.lines(of: root + "/proc/self/cgroup")
        let mounts = Self.lines(of: root + "/proc/self/mountinfo").compactMap { Mount($0) }
        func find(isUnified: Bool) -> [String]? {
            guard let mount = mounts.last(where: { $0.isUnified == isUnified }),
                let path = groups.lazy.compactMap({ Self.path(in: $0, isUnified: isUnified) }).first
            else { return nil }
            return mount.directories(of: path)
        }
        // Where both are there, the memory controller is in the first version's.
        let old = find(isUnified: false)
        isUnified = old == nil
        directories = old ?? find(isUnified: true) ?? []
    }

    /// - Parameter enough: What the caller wants to know of; of places with more than this the easy part is counted only.
    /// - Returns: Nil where nothing can be known.
    package func narrowest(enough: Int = .max) -> Answer? {
        (directories.compactMap { room(in: $0, enough) } + [host()].compactMap { $0 }).min {
            $0.byteCount < $1.byteCount
        }
    }

    private func room(in directory: String, _ enough: Int) -> Answer? {
        let names = isUnified ? ("memory.max", "memory.current") : ("memory.limit_in_bytes", "memory.usage_in_bytes")
        guard let limit = number(directory, names.0), limit < Self.unlimited, let usage = number(directory, names.1)
        else { return nil }
        var room = limit - usage
        if room < enough {
            let reclaimable = reclaimable(in: directory)
            room += reclaimable
            let swap = hostNumber("SwapFree") ?? 0
            if isUnified {
                let allowed = number(directory, "memory.swap.max") ?? .max
                room += max(0, min(swap, allowed - (number(directory, "memory.swap.current") ?? 0)))
            } else if let both = number(directory, "memory.memsw.limit_in_bytes"), both < Self.unlimited,
                let used = number(directory, "memory.memsw.usage_in_bytes")
            {
                room = min(room + swap, both - used + reclaimable)
            } else {
                room += swap
            }
        }
        return Answer(byteCount: max(0, room), limitByteCount: limit, place: directory)
    }

    /// Clean pages of files that nobody has mapped.
    private func reclaimable(in directory: String) -> Int {
        var values: [Substring: Int] = [:]
        for line in Self.lines(of: root + directory + "/memory.stat") {
            let words = line.split(separator: " ")
            if words.count == 2 { values[words[0]] = Int(words[1]) }
        }
        func value(_ unified: Substring, _ old: Substring) -> Int { values[isUnified ? unified : old] ?? 0 }
        let files = value("inactive_file", "total_inactive_file") + value("active_file", "total_active_file")
        // What is mapped may be shared memory, which is among the files in this one number only.
        let mapped = max(0, value("file_mapped", "total_mapped_file") - value("shmem", "total_shmem"))
        let busy = value("file_dirty", "total_dirty") + value("file_writeback", "total_writeback")
        return max(0, files - mapped - busy)
    }

    private func host() -> Answer? {
        guard let available = hostNumber("MemAvailable") else { return nil }
        return Answer(byteCount: available + (hostNumber("SwapFree") ?? 0), limitByteCount: nil, place: "the host")
    }

    private func hostNumber(_ name: String) -> Int? {
        for line in Self.lines(of: root + "/proc/meminfo") where line.hasPrefix("\(name):") {
            return line.split(separator: " ").dropFirst().first.flatMap { Int($0) }.map { $0 << 10 }
        }
        return nil
    }

    /// Nil also for `max`.
    private func number(_ directory: String, _ name: String) -> Int? {
        guard let text = Self.lines(of: root + "\(directory)/\(name)").first else { return nil }
        return UInt64(text).map { Int(clamping: $0) }
    }

    private static func lines(of path: String) -> [Substring] {
        guard let bytes = try? FileNames.contents(of: path) else { return [] }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    }

    /// Our group in a line of `/proc/self/cgroup`: `0::/path`, or `4:memory:/path`.
    private static func path(in line: Substring, isUnified: Bool) -> Substring? {
        let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count == 3 else { return nil }
        let isWanted =
            isUnified ? parts[0] == "0" && parts[1].isEmpty : parts[1].split(separator: ",").contains("memory")
        return isWanted ? parts[2] : nil
    }

    /// A hierarchy of control groups in the file system; a line of `/proc/self/mountinfo`.
    private struct Mount {
        let isUnified: Bool
        /// The group that is at the mount's top.
        let top: String
        let point: String

        init?(_ line: Substring) {
            let words = line.split(separator: " ")
            guard let dash = words.firstIndex(of: "-"), dash > 5, words.count > dash + 3 else { return nil }
            switch words[dash + 1] {
            case "cgroup2": isUnified = true
            case "cgroup" where words[dash + 3].split(separator: ",").contains("memory"): isUnified = false
            default: return nil
            }
            top = String(words[3])
            point = Self.plain(words[4])
        }

        /// The group's directory and those above it. Of a group that cannot be seen from here, what can be.
        func directories(of path: Substring) -> [String] {
            var names = path.split(separator: "/")
            if top != "/" {
                let above = top.split(separator: "/")
                names = names.starts(with: above) ? Array(names.dropFirst(above.count)) : []
            }
            if names.contains("..") { names = [] }
            return (0...names.count).reversed().map { ([Substring(point)] + names[..<$0]).joined(separator: "/") }
        }

        /// Spaces and the like stand as three octal digits behind a backslash.
        private static func plain(_ word: Substring) -> String {
            var bytes: [UInt8] = []
            var rest = Array(word.utf8)[...]
            while let byte = rest.popFirst() {
                if byte == UInt8(ascii: "\\"), rest.count >= 3,
                    let code = UInt8(String(decoding: rest.prefix(3), as: UTF8.self), radix: 8)
                {
                    bytes.append(code)
                    rest = rest.dropFirst(3)
                } else {
                    bytes.append(byte)
                }
            }
            return String(decoding: bytes, as: UTF8.self)
        }
    }
}
