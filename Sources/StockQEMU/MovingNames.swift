package import LinuxCalls

/// Names that change places between the two processes.
package struct MovingNames: Hashable, Sendable {
    package struct Entry: Hashable, Sendable {
        package var publicPath: String
        package var privatePath: String
        /// Of the file under the public path before anything happened.
        package var inode: UInt64

        fileprivate func look() throws(SystemCallError) {
            guard try FileNames.status(of: publicPath).inode == inode else {
                throw SystemCallError("stat", .fileExists, subject: "\(publicPath) is another file now")
            }
        }
    }

    package var entries: [Entry] = []
    package var directories: [String] = []

    package init(entries: [Entry] = []) { self.entries = entries }

    package func makeDirectories() throws(SystemCallError) {
        for directory in directories { try FileNames.makeDirectory(directory) }
    }

    /// Gives the new process the names; all or none.
    package func exchange() throws(UpgradeFailure) {
        for (index, entry) in entries.enumerated() {
            do throws(SystemCallError) {
                try entry.look()
                try FileNames.copyAccess(of: entry.publicPath, to: entry.privatePath)
                try FileNames.exchange(entry.publicPath, entry.privatePath)
            } catch {
                MovingNames(entries: Array(entries[..<index])).exchangeBack()
                throw Self.refusal(error)
            }
        }
    }

    /// Looks whether the names are still what they were, and could be given.
    package func look() throws(UpgradeFailure) {
        do throws(SystemCallError) { for entry in entries { try entry.look() } } catch { throw Self.refusal(error) }
    }

    private static func refusal(_ error: SystemCallError) -> UpgradeFailure {
        UpgradeFailure(.rolledBack, "names could not be given to the new process: \(error)")
    }

    /// Gives the new process those names that it has not yet. Nothing is taken back any more.
    /// - Returns: Names that it does not have, because they are other files now: it serves them under their private paths.
    package func give() -> [Entry] {
        var missing: [Entry] = []
        for entry in entries where (try? FileNames.status(of: entry.privatePath).inode) != entry.inode {
            do throws(UpgradeFailure) { try MovingNames(entries: [entry]).exchange() } catch { missing.append(entry) }
        }
        return missing
    }

    /// Undoes ``exchange()`` where it was done.
    package func exchangeBack() {
        for entry in entries where (try? FileNames.status(of: entry.privatePath).inode) == entry.inode {
            try? FileNames.exchange(entry.publicPath, entry.privatePath)
        }
    }

    /// Removes the private names: the new process's after a failure.
    package func removePrivate() {
        for entry in entries { FileNames.remove(entry.privatePath) }
        removeDirectories()
    }

    /// Removes what was the old process's, after success.
    package func removeOld() {
        for entry in entries where (try? FileNames.status(of: entry.privatePath).inode) == entry.inode {
            FileNames.remove(entry.privatePath)
        }
        removeDirectories()
    }

    /// Those in which nothing is left.
    private func removeDirectories() {
        for directory in directories {
            for name in MoveChannel.files { FileNames.remove("\(directory)/\(name)") }
            FileNames.removeDirectory(directory)
        }
    }
}
