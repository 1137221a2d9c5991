package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// LoadDir compiles all *.yaml files that stand in dir (hidden ones apart; links are
// followed). An empty directory is a valid set that denies everything; one that is
// missing or cannot be read is an error, as is any file that cannot be read.
func LoadDir(dir string) (*Set, []Warning, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("policy directory %s does not exist: create it or set policy.dir", dir)
	case err != nil:
		return nil, nil, fmt.Errorf("policy directory: %w", err)
	}
	var files []File
	var problems Problems
	var warnings []Warning
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		switch filepath.Ext(name) {
		case ".yaml":
		case ".yml":
			warnings = append(warnings, Warning{File: name, Message: "is not read: policy files end in .yaml"})
			continue
		default:
			continue
		}
		data, err := readFile(name)
		if err != nil {
			problems = append(problems, Problem{File: name, Message: err.Error()})
			continue
		}
		files = append(files, File{Name: name, Data: data})
	}
	set, more, err := Compile(files)
	warnings = append(warnings, more...)
	if len(problems) > 0 {
		var compiled Problems
		if errors.As(err, &compiled) {
			problems = append(problems, compiled...)
		}
		return nil, warnings, problems.tidy()
	}
	return set, warnings, err
}

// readFile reads a regular file, and no more of it than Compile needs to refuse it.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, reason(err)
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, reason(err)
	}
	return data, nil
}

// reason drops the path, which the Problem names already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("cannot be read: %w", pe.Err)
	}
	return err
}
