package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// everywhere are the failures that any route may answer with.
var everywhere = [...]int{400, 401, 403, 421, 429, 500}

// openAPI makes the OpenAPI 3.1 document from the route table, the Go types in it and the
// kinds' schemas. It holds no example, so none can hold a secret.
func (s *Server) openAPI() ([]byte, error) {
	all := schemas{}
	all.add(reflect.TypeFor[ErrorBody]())
	s.specSchemas(all)
	paths := object{}
	for i := range s.routes {
		rt := &s.routes[i]
		path, _ := paths[rt.pattern].(object)
		if path == nil {
			path = object{}
			paths[rt.pattern] = path
		}
		path[strings.ToLower(rt.method)] = rt.operation(all)
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "egressd management API", "version": s.opt.Version.APIVersion,
			"description": "All under spec is write-only; all outside spec is readable. The unix socket's owner needs no token.",
		},
		"paths":    paths,
		"security": []any{object{"bearer": []any{}}},
		"components": object{
			"schemas":         all,
			"securitySchemes": object{"bearer": object{"type": "http", "scheme": "bearer"}},
			"headers": object{
				"RequestID": object{"description": "names the request in the operator's log", "schema": object{"type": "string"}},
				"ETag":      object{"description": "strong; made of version and revision", "schema": object{"type": "string"}},
			},
		},
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("api: encode OpenAPI document: %w", err)
	}
	return append(b, '\n'), nil
}

// specSchemas adds each kind's schema and puts the choice between them where a body has spec.
func (s *Server) specSchemas(all schemas) {
	choice := []any{}
	for _, k := range s.opt.Kinds.Kinds() {
		all["Spec_"+k.Name] = k.Schema()
		choice = append(choice, object{"$ref": "#/components/schemas/Spec_" + k.Name})
	}
	all["Spec"] = object{"oneOf": choice, "writeOnly": true}
	for _, t := range []reflect.Type{reflect.TypeFor[SourceWrite](), reflect.TypeFor[SourceReplace](), reflect.TypeFor[SourceRotate]()} {
		all.add(t)
		properties, _ := all[t.Name()].(object)["properties"].(object)
		properties["spec"] = object{"$ref": "#/components/schemas/Spec"}
	}
	all.add(reflect.TypeFor[SourcePatch]())
	if properties, ok := all["SourcePatch"].(object)["properties"].(object); ok {
		delete(properties, "spec") // refused there
	}
}

// operation describes one row.
func (rt *route) operation(all schemas) object {
	op := object{
		"summary": rt.summary, "operationId": rt.operationID(), "x-egressd-role": rt.role.String(),
		"parameters": rt.parameters(), "responses": rt.responses(all),
	}
	if rt.in != nil {
		media := rt.media
		if media == "" {
			media = mediaJSON
		}
		op["requestBody"] = object{"required": true, "content": object{media: object{"schema": all.of(reflect.TypeOf(rt.in))}}}
	}
	return op
}

// operationID is the method and the words of the path.
func (rt *route) operationID() string {
	words := strings.FieldsFunc(strings.TrimPrefix(rt.pattern, base), func(r rune) bool { return strings.ContainsRune("/{}.-", r) })
	out := strings.ToLower(rt.method)
	for _, w := range words {
		out += strings.ToUpper(w[:1]) + w[1:]
	}
	return out
}

func (rt *route) parameters() []any {
	header := func(name, about string) object {
		return object{"name": name, "in": "header", "description": about, "schema": object{"type": "string"}}
	}
	out := []any{header(TeamHeader, "the team to act for, for a principal that is bound to none")}
	if strings.Contains(rt.pattern, "{name}") {
		out = append(out, object{"name": "name", "in": "path", "required": true, "schema": object{"type": "string", "pattern": nameRE.String()}})
	}
	if slices.Contains(rt.failures, http.StatusPreconditionFailed) {
		out = append(out, header("If-Match", "the ETag that the source must still have"))
	}
	if rt.replay == replayStored {
		out = append(out, header(KeyHeader, "makes the request safe to repeat for 24 h"))
	}
	for _, p := range rt.query {
		kind := object{"type": "string"}
		if p.number {
			kind = object{"type": "integer"}
		}
		if p.many {
			kind = object{"type": "array", "items": kind}
		}
		out = append(out, object{"name": p.name, "in": "query", "description": p.about, "schema": kind})
	}
	return out
}

func (rt *route) responses(all schemas) object {
	headers := object{"X-Request-Id": object{"$ref": "#/components/headers/RequestID"}}
	failed := object{
		"description": "refused", "headers": headers,
		"content": object{mediaJSON: object{"schema": object{
			"type": "object", "additionalProperties": false, "required": []string{"success", "error"},
			"properties": object{"success": object{"const": false}, "error": object{"$ref": "#/components/schemas/ErrorBody"}},
		}}},
	}
	out := object{}
	for _, status := range slices.Concat(everywhere[:], rt.failures) {
		out[strconv.Itoa(status)] = failed
	}
	if rt.in != nil {
		out["413"], out["415"] = failed, failed
	}
	good := object{"description": "done", "headers": headers}
	if rt.produces != "" {
		good["content"] = object{rt.produces: object{"schema": object{}}}
	} else {
		properties := object{"success": object{"const": true}, "data": all.of(reflect.TypeOf(rt.out))}
		if len(rt.query) > 0 {
			properties["nextPageToken"] = object{"type": "string"}
		}
		good["content"] = object{mediaJSON: object{"schema": object{
			"type": "object", "additionalProperties": false, "required": []string{"success", "data"}, "properties": properties,
		}}}
	}
	out[strconv.Itoa(rt.status)] = good
	return out
}
