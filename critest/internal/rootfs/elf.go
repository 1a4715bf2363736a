package rootfs

import (
	"debug/elf"
	"fmt"
	"path"
	"runtime"
	"strings"
)

// Finder looks files up in unpacked packages.
type Finder interface {
	Find(candidates ...string) (string, error)
}

func triplet() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}

// Program adds a dynamically linked program, its interpreter and all the libraries that it needs, found by reading the
// ELF headers (never by running it).
func (t *Tree) Program(packages Finder, name string, mode int64, from ...string) error {
	file, err := packages.Find(from...)
	if err != nil {
		return err
	}
	if err := t.Copy(name, file, mode); err != nil {
		return err
	}
	return t.libraries(packages, file)
}

func (t *Tree) libraries(packages Finder, file string) error {
	object, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer object.Close()
	for _, part := range object.Progs {
		if part.Type != elf.PT_INTERP {
			continue
		}
		raw := make([]byte, part.Filesz)
		if _, err := part.ReadAt(raw, 0); err != nil {
			return fmt.Errorf("%s: interpreter: %w", file, err)
		}
		interpreter := strings.TrimRight(string(raw), "\x00")
		from, err := packages.Find(interpreter, path.Join("/lib", triplet(), path.Base(interpreter)),
			path.Join("/usr/lib", triplet(), path.Base(interpreter)))
		if err != nil {
			return err
		}
		if err := t.Copy(interpreter, from, 0o755); err != nil {
			return err
		}
	}
	needed, err := object.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, library := range needed {
		to := path.Join("/lib", triplet(), library)
		if t.Has(to) {
			continue
		}
		from, err := packages.Find(to, path.Join("/usr/lib", triplet(), library), path.Join("/usr/lib", library))
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", file, library, err)
		}
		if err := t.Copy(to, from, 0o644); err != nil {
			return err
		}
		if err := t.libraries(packages, from); err != nil {
			return err
		}
	}
	return nil
}
