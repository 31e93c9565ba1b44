-- Runs for each attempt, so that a request that waited for a restart gets the token that is current then.
function envoy_on_request(handle)
  local headers = handle:headers()
  local token = string.match(headers:get("authorization") or "", "^Bearer (%S+)$")
  local expires = token and EARLIER[token]
  if ALWAYS or (expires and os.time() < expires) then
    headers:replace("authorization", "Bearer " .. CURRENT)
  end
end
