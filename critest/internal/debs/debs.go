// Package debs downloads Debian packages with apt and unpacks them beside each other, without installing anything.
package debs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// Package is one file that apt would download.
type Package struct {
	// Name of the Debian package.
	Name string
	// File is the name of the .deb, version and architecture included.
	File string
	// SHA256 in lower-case hex, as apt states it.
	SHA256 string
}

// Resolve asks apt which files the named packages are now. Only apt's lists are read, nothing is downloaded.
func Resolve(names []string) ([]Package, error) {
	args := append([]string{"download", "--print-uris"}, names...)
	command := exec.Command("apt-get", args...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("apt-get %s: %w: %s (has apt-get update been run?)",
			strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	var found []Package
	for _, line := range strings.Split(string(stdout), "\n") {
		// 'URI' file size SHA256:hex
		fields := strings.Fields(line)
		if len(fields) != 4 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		file := fields[1]
		sum, ok := strings.CutPrefix(fields[3], "SHA256:")
		if !ok {
			return nil, fmt.Errorf("apt states no SHA256 for %s: %q", file, fields[3])
		}
		uri, err := url.PathUnescape(path.Base(strings.Trim(fields[0], "'")))
		if err != nil {
			return nil, fmt.Errorf("apt's URI for %s: %w", file, err)
		}
		name, _, _ := strings.Cut(uri, "_")
		found = append(found, Package{Name: name, File: file, SHA256: sum})
	}
	if len(found) != len(names) {
		return nil, fmt.Errorf("apt knows %d of the %d packages %s", len(found), len(names), strings.Join(names, " "))
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
	return found, nil
}

// Unpack downloads what is not in dir yet and returns the unpacked trees, one for each package.
func Unpack(dir string, packages []Package) (*Set, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var missing []string
	for _, p := range packages {
		if checksum(filepath.Join(dir, p.File)) != p.SHA256 {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 {
		// As root apt would drop to its own user, which may not write here.
		command := exec.Command("apt-get", append([]string{"-o", "APT::Sandbox::User=root", "download"}, missing...)...)
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("apt-get download %s: %w: %s", strings.Join(missing, " "), err, out)
		}
	}
	set := &Set{}
	for _, p := range packages {
		file := filepath.Join(dir, p.File)
		if got := checksum(file); got != p.SHA256 {
			return nil, fmt.Errorf("%s: sha256 is %q, apt says %s", file, got, p.SHA256)
		}
		tree := strings.TrimSuffix(file, ".deb")
		if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
			half := tree + ".part"
			if err := os.RemoveAll(half); err != nil {
				return nil, err
			}
			if out, err := exec.Command("dpkg-deb", "-x", file, half).CombinedOutput(); err != nil {
				return nil, fmt.Errorf("dpkg-deb -x %s: %w: %s", file, err, out)
			}
			if err := os.Rename(half, tree); err != nil {
				return nil, err
			}
		}
		set.roots = append(set.roots, tree)
	}
	return set, nil
}

func checksum(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// Set is a number of unpacked packages.
type Set struct {
	roots []string
}

// Find returns the first regular file at one of the paths, symbolic links followed inside their own package.
func (s *Set) Find(candidates ...string) (string, error) {
	for _, name := range candidates {
		for _, root := range s.roots {
			file, err := inside(root, name)
			if err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("none of the unpacked packages has %s", strings.Join(candidates, " or "))
}

// inside follows links as a chroot to root would; Debian's absolute links would else lead to the host's files.
func inside(root, name string) (string, error) {
	for range 16 {
		full := filepath.Join(root, path.Clean("/"+name))
		info, err := os.Lstat(full)
		if err != nil {
			return "", err
		}
		if info.Mode().IsRegular() {
			return full, nil
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return "", fmt.Errorf("%s is not a file", full)
		}
		target, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir("/"+name), target)
		}
		name = target
	}
	return "", fmt.Errorf("%s: too many links", name)
}
