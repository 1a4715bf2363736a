// Package rootfs describes the content of an image layer: a sorted list of entries, every one with a fixed time.
package rootfs

import (
	"archive/tar"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"
	"time"
)

// Stamp is the modification time of every entry and the creation time of every image, so that a build repeats itself.
var Stamp = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)

type entry struct {
	header tar.Header
	body   []byte
}

// Tree is the content of one layer. Paths are absolute within the image.
type Tree struct {
	entries map[string]entry
	// links come last in the archive, after what they point to.
	links map[string]entry
}

// New returns an empty layer.
func New() *Tree {
	return &Tree{entries: map[string]entry{}, links: map[string]entry{}}
}

func (t *Tree) put(header tar.Header, body []byte) {
	name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		if _, ok := t.entries[parent]; !ok {
			t.entries[parent] = entry{header: tar.Header{Typeflag: tar.TypeDir, Name: parent + "/", Mode: 0o755}}
		}
	}
	header.Name = name
	if header.Typeflag == tar.TypeDir {
		header.Name += "/"
	}
	header.Size = int64(len(body))
	into := t.entries
	if header.Typeflag == tar.TypeLink {
		into = t.links
	}
	into[name] = entry{header: header, body: body}
}

// Put adds an entry with every field of its header under the caller's control (devices, extended attributes, owners).
func (t *Tree) Put(header tar.Header, body []byte) { t.put(header, body) }

// Dir adds a folder.
func (t *Tree) Dir(name string, mode int64) {
	t.put(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}

// File adds a regular file.
func (t *Tree) File(name string, mode int64, body []byte) {
	t.put(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, body)
}

// Text adds a regular file of mode 0644.
func (t *Tree) Text(name, body string) { t.File(name, 0o644, []byte(body)) }

// Symlink adds a symbolic link.
func (t *Tree) Symlink(name, target string) {
	t.put(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// Hardlink adds another name of a file that this layer has already. Its header repeats the file's mode and owner, as
// archives made by others do: some unpackers apply them.
func (t *Tree) Hardlink(name, target string) {
	key := strings.TrimPrefix(path.Clean("/"+target), "/")
	of := t.entries[key].header
	t.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: key, Mode: of.Mode, Uid: of.Uid, Gid: of.Gid}, nil)
}

// Has says whether the layer has an entry of that name.
func (t *Tree) Has(name string) bool {
	key := strings.TrimPrefix(path.Clean("/"+name), "/")
	_, file := t.entries[key]
	_, link := t.links[key]
	return file || link
}

// Copy adds a file of the build machine.
func (t *Tree) Copy(name, from string, mode int64) error {
	body, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", name, err)
	}
	t.File(name, mode, body)
	return nil
}

// Write writes the layer as a tar archive: sorted by name, hard links last.
func (t *Tree) Write(archive *tar.Writer) error {
	for _, group := range []map[string]entry{t.entries, t.links} {
		names := make([]string, 0, len(group))
		for name := range group {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			e := group[name]
			header := e.header
			if header.ModTime.IsZero() {
				header.ModTime = Stamp
			}
			header.Format = tar.FormatPAX
			if err := archive.WriteHeader(&header); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if _, err := archive.Write(e.body); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return archive.Close()
}
